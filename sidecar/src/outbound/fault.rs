//! Failures on purpose: a delay, an answer in place of the service's, a reset, a slow answer. `exchange` asks only for
//! rules that have faults. Each says in `Proxy-Status` which FaultInjection did it, so that nobody looks for a bug.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use weft_policy::model::{Abort, Fault};

use super::plan::Plan;
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{body::Body, forward::Received, reply, serve::Reset},
};

/// What is left to do to the answer.
pub struct Injected {
    /// Index of the fault that has delayed the request.
    delayed: Option<usize>,
    /// Index of the fault that slows the answer down, and its bytes per second.
    slow: Option<(usize, u64)>,
}

/// What is done to one request, each with the index of its fault.
#[derive(Debug, Default, PartialEq)]
struct Decision {
    delay: Option<(usize, Duration)>,
    abort: Option<(usize, Abort)>,
    slow: Option<(usize, u64)>,
}

/// Delays a request that began at `started`, then lets it go on or answers it.
///
/// # Errors
/// The answer in place of the service's, counted already.
pub async fn inject(
    worker: &Worker,
    plan: &Plan,
    received: &Received,
    headers: &HeaderMap,
    started: Instant,
) -> Result<Injected, Response<Body>> {
    let faults = &plan.rule.requests.faults;
    let decision = decide(faults, headers, SystemTime::now(), || worker.random());
    let metrics = &plan.cluster.shared.http[0];
    if let Some((index, delay)) = decision.delay {
        let left = plan.timeout.map_or(delay, |timeout| timeout.saturating_sub(started.elapsed()).min(delay));
        tokio::time::sleep(left).await;
        if left < delay {
            let detail = format!("delayed for longer than its timeout by FaultInjection {}", faults[index].name);
            let error = ProxyError::unsent(Reason::FaultDelay, detail);
            metrics.record(error.reason.status(), Some(error.reason), started.elapsed());
            return Err(reply::error(&error, received.grpc, None));
        }
    }
    let Some((index, abort)) = decision.abort else {
        return Ok(Injected { delayed: decision.delay.map(|(index, _)| index), slow: decision.slow });
    };
    let (status, answer) = aborted(abort, &faults[index].name, received.grpc);
    metrics.record(status, Some(Reason::FaultAbort), started.elapsed());
    Err(answer)
}

/// Slows the answer down, also one that we made ourselves, and says what was done.
pub fn answered(injected: Option<&Injected>, plan: &Plan, answer: &mut Response<Body>) {
    let Some(injected) = injected else { return };
    let name = |index: usize| plan.rule.requests.faults.get(index).map_or("", |fault| &fault.name);
    if let Some(index) = injected.delayed {
        answer.body_mut().note(Reason::FaultDelay);
        explain(answer, Reason::FaultDelay.as_str(), name(index));
    }
    if let Some((index, bytes_per_second)) = injected.slow {
        answer.body_mut().pace(bytes_per_second);
        explain(answer, "fault_bandwidth", name(index));
    }
}

/// Of each kind the first fault that is for this request and is drawn.
fn decide(faults: &[Fault], headers: &HeaderMap, now: SystemTime, mut random: impl FnMut() -> u64) -> Decision {
    let mut decision = Decision::default();
    let mut drawn = |ppm: u32| weft_policy::filter::share(random(), ppm);
    for (index, fault) in faults.iter().enumerate() {
        let over = fault.expires.is_some_and(|expires| expires <= now);
        if over || !fault.headers.iter().all(|header| header.matches(headers)) {
            continue;
        }
        if let (None, Some((delay, ppm))) = (decision.delay, fault.delay)
            && drawn(ppm)
        {
            decision.delay = Some((index, delay));
        }
        if let (None, Some((abort, ppm))) = (decision.abort, fault.abort)
            && drawn(ppm)
        {
            decision.abort = Some((index, abort));
        }
        if let (None, Some((rate, ppm))) = (decision.slow, fault.bandwidth)
            && drawn(ppm)
        {
            decision.slow = Some((index, rate));
        }
    }
    decision
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

#[cfg(test)]
mod tests {
    use weft_policy::model::{KeyMatch, ValueMatch};

    use super::*;

    const ALWAYS: u32 = 1_000_000;

    fn delay(seconds: u64, ppm: u32) -> Fault {
        let delay = Some((Duration::from_secs(seconds), ppm));
        Fault { name: "shop/slow".into(), headers: vec![], delay, abort: None, bandwidth: None, expires: None }
    }

    #[test]
    fn the_first_fault_that_is_drawn_decides() {
        let faults = [delay(1, 0), delay(2, ALWAYS), delay(3, ALWAYS)];
        let decision = decide(&faults, &HeaderMap::new(), SystemTime::now(), || u64::MAX / 2);
        assert_eq!(decision, Decision { delay: Some((1, Duration::from_secs(2))), ..Decision::default() });
    }

    #[test]
    fn a_fault_is_for_requests_with_its_headers_until_it_expires() {
        let now = SystemTime::now();
        let header = KeyMatch { name: HeaderName::from_static("x-test"), value: ValueMatch::Exact("1".into()) };
        let expires = Some(now + Duration::from_secs(1));
        let faults = [Fault { headers: vec![header], expires, ..delay(1, ALWAYS) }];
        let with = HeaderMap::from_iter([(HeaderName::from_static("x-test"), HeaderValue::from_static("1"))]);
        let hit = |headers: &HeaderMap, seconds| {
            decide(&faults, headers, now + Duration::from_secs(seconds), || 0).delay.is_some()
        };
        assert!(hit(&with, 0));
        assert!(!hit(&HeaderMap::new(), 0));
        assert!(!hit(&with, 1));
    }
}
