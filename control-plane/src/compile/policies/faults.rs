//! Failures on purpose, as they are sent.

use weft_proto::v1;

use super::{Policy, ppm, wire};
use crate::source::policies::limits::{FaultAbort, FaultBandwidth, FaultDelay, FaultInjectionSpec};

const ALL: f64 = 100.0;

/// The message; none when it cannot be told when it ends: a failure on purpose must not outlive its purpose.
pub fn fault(object: &Policy<FaultInjectionSpec>) -> Option<v1::Fault> {
    let FaultInjectionSpec { delay, abort, bandwidth, headers, .. } = &object.value.spec;
    let share = |percent: Option<f64>| ppm(percent.unwrap_or(ALL));
    let mut fault = v1::Fault { name: object.id(), expires_ms: expires(object).ok()?, ..v1::Fault::default() };
    for (name, value) in headers.iter().flatten() {
        let name = name.to_ascii_lowercase();
        fault.headers.push(v1::KeyMatch { name, value: value.clone(), regex: false });
    }
    if let Some(FaultDelay { fixed, percent }) = delay {
        (fault.delay, fault.delay_ppm) = (wire(fixed.0), share(*percent));
    }
    if let Some(FaultAbort { http_status, grpc_status, reset: _, percent }) = abort {
        let grpc = || grpc_status.as_deref().and_then(weft_policy::grpc::code).map(v1::fault::Abort::GrpcStatus);
        let kind = http_status.map(|status| v1::fault::Abort::HttpStatus(status.into())).or_else(grpc);
        fault.abort = Some(kind.unwrap_or(v1::fault::Abort::Reset(true)));
        fault.abort_ppm = share(*percent);
    }
    if let Some(FaultBandwidth { bytes_per_second, percent }) = bandwidth {
        (fault.bytes_per_second, fault.bandwidth_ppm) = (*bytes_per_second, share(*percent));
    }
    Some(fault)
}

/// It needs a creation time to expire after, and has none.
#[derive(Debug)]
pub struct NoStart;

/// Milliseconds since the epoch at which it ends, 0: never.
pub fn expires(object: &Policy<FaultInjectionSpec>) -> Result<u64, NoStart> {
    let Some(after) = object.value.spec.expires_after else { return Ok(0) };
    let created = object.value.metadata.creation_timestamp.as_ref().ok_or(NoStart)?;
    let created = u64::try_from(created.0.as_millisecond()).unwrap_or_default();
    // Of the past: 0 would be never.
    Ok(created.saturating_add(u64::try_from(after.0.as_millis()).unwrap_or(u64::MAX)).max(1))
}
