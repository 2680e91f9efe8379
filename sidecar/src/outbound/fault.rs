//! Failures on purpose: a delay, an answer in place of the service's, a reset, a slow answer. `exchange` asks only for
//! rules that have faults. Each says in `Proxy-Status` which FaultInjection did it, so that nobody looks for a bug.

use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use weft_policy::model::Abort;

use super::plan::Plan;
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{body::Body, forward::Received, reply, serve::Reset},
    telemetry::{Ended, trace::OpenSpan},
};

/// In place of a reason: the answer is only slower.
const BANDWIDTH: &str = "fault_bandwidth";

/// What is left to do to the answer.
pub struct Injected {
    delayed: bool,
    bytes_per_second: Option<u64>,
    /// Which faults they were.
    names: String,
}

/// A request that a fault ended.
pub struct Aborted {
    /// Of the answer, as it is in the books; 0 for a reset.
    status: u16,
    /// Why.
    reason: Reason,
    /// Which faults they were.
    names: String,
    /// In place of the service's.
    pub answer: Response<Body>,
}

impl Aborted {
    /// The end of the request's span.
    pub fn tell(&self, span: &mut OpenSpan) {
        note(span, self.reason.as_str(), &self.names);
        span.answered_here((self.status, self.answer.headers()), Some(self.reason));
    }
}

impl Injected {
    /// Notes on the span of the first try what was done.
    pub fn note(&self, span: &mut OpenSpan) {
        if self.delayed {
            note(span, Reason::FaultDelay.as_str(), &self.names);
        }
        if self.bytes_per_second.is_some() {
            note(span, BANDWIDTH, &self.names);
        }
    }
}

fn note(span: &mut OpenSpan, what: &'static str, names: &str) {
    span.event("weft.fault", || [("weft.reason", what.to_owned()), ("weft.fault", names.to_owned())]);
}

/// Delays a request that began at `started`, then lets it go on or answers it.
///
/// # Errors
/// The answer in place of the service's, counted already, and why.
pub async fn inject(
    worker: &Worker,
    plan: &Plan,
    received: &Received,
    headers: &HeaderMap,
    started: Instant,
) -> Result<Injected, Aborted> {
    let injection =
        weft_policy::fault::inject(&plan.rule.requests.faults, headers, SystemTime::now(), || worker.random());
    let names = injection.names.join(", ");
    let metrics = plan.metrics(false);
    if let Some(delay) = injection.delay {
        let left = plan.timeout.map_or(delay, |timeout| timeout.saturating_sub(started.elapsed()).min(delay));
        tokio::time::sleep(left).await;
        if left < delay {
            let detail = format!("delayed for longer than its timeout by FaultInjection {names}");
            let error = ProxyError::unsent(Reason::FaultDelay, detail);
            metrics.record(&Ended::failed(&error, (received.version, received.grpc), started));
            let answer = reply::error(&error, received.grpc, None);
            return Err(Aborted { status: answer.status().as_u16(), reason: error.reason, names, answer });
        }
    }
    let Some(abort) = injection.abort else {
        let (delayed, bytes_per_second) = (injection.delay.is_some(), injection.bytes_per_second);
        return Ok(Injected { delayed, bytes_per_second, names });
    };
    let (status, answer) = aborted(abort, &names, received.grpc);
    let reason = Some(Reason::FaultAbort);
    metrics.record(&Ended { reason, ..Ended::new(status, received.version, started) });
    Err(Aborted { status, reason: Reason::FaultAbort, names, answer })
}

/// Slows the answer down, also one that we made ourselves, and says what was done.
pub fn answered(injected: Option<&Injected>, answer: &mut Response<Body>) {
    let Some(injected) = injected else { return };
    if injected.delayed {
        answer.body_mut().note(Reason::FaultDelay);
        explain(answer, Reason::FaultDelay.as_str(), &injected.names);
    }
    if let Some(bytes_per_second) = injected.bytes_per_second {
        answer.body_mut().pace(bytes_per_second);
        explain(answer, BANDWIDTH, &injected.names);
    }
}

/// The answer of an abort, and the status for the books. A caller that expects gRPC gets gRPC and others get HTTP,
/// whichever the fault is written in.
fn aborted(abort: Abort, fault: &str, grpc: bool) -> (u16, Response<Body>) {
    let error = ProxyError::unsent(Reason::FaultAbort, format!("by FaultInjection {fault}"));
    let (status, code) = match abort {
        Abort::Reset => {
            let mut answer = Response::new(Body::empty());
            answer.extensions_mut().insert(Reset);
            return (0, answer);
        }
        Abort::Http(status) => (status.as_u16(), grpc_code(status.as_u16())),
        Abort::Grpc(code) => (http_status(code), code),
    };
    let mut answer = reply::error(&error, grpc, Some(status));
    if grpc {
        answer.headers_mut().insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(code)));
    }
    (status, answer)
}

/// What a gRPC client makes of an HTTP status (gRPC, `http-grpc-status-mapping.md`).
const fn grpc_code(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The HTTP status of a gRPC code (`google.rpc.Code`).
const fn http_status(code: u8) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Beside what others have said of this answer (RFC 9209 section 2).
fn explain(answer: &mut Response<Body>, what: &str, fault: &str) {
    // The name is that of a resource: letters, digits and punctuation that need no escape.
    if let Ok(value) = HeaderValue::from_str(&format!("weft; details=\"{what}: by FaultInjection {fault}\"")) {
        answer.headers_mut().append(reply::PROXY_STATUS, value);
    }
}
