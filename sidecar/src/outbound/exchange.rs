//! One request from the app: the straight line from head to answer, with its retries.

use std::{pin::pin, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use weft_policy::{fields::Fields, trace::SpanId};

use super::{
    Caller, fault, filters, find, mirror,
    plan::{plan, service_name},
    tries::{Tries, within},
};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{CALLER_VERSION, RULE, body::Body, forward::Received, refused::Refused, reply},
    snapshot::Snapshot,
    telemetry::{
        Direction, Ended,
        span::Kind,
        trace::{FORCE, OpenSpan, Traced},
    },
};

/// Serves one request; `snapshot` is the newest one.
pub async fn run(
    worker: Rc<Worker>,
    snapshot: Arc<Snapshot>,
    caller: Rc<Caller>,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    // 1, 2: canonicalise or reject before anything else looks at the request.
    let (mut received, mut request) = match Received::new(request) {
        Ok(received) => received,
        Err(refused) => {
            worker.unrouted(Direction::Outbound).record(&refused.ended(started));
            refused_line(&worker, &snapshot, &refused, started);
            let mut response = reply::error(&refused.error, false, Some(refused.status));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
    };
    let forced = received.fields.has(Fields::OWN) && take_own(request.headers_mut());
    let version = received.version;
    let telemetry = snapshot.workload.as_ref().map(|workload| &workload.telemetry);
    let traced = telemetry.map(|told| Traced::of(told, request.headers(), forced, || worker.random()));
    if let Some(traced) = &traced {
        worker.contexts.sent(traced.has_parent());
    }
    // 3 to 6: service, route, backend, cluster.
    let planned = match service_name(&worker, &snapshot, &caller.destination, &received) {
        Ok(name) => match snapshot.services.get(&name) {
            Some(service) => plan(&worker, &snapshot, service, &caller, &mut received, &mut request),
            // Only the first call to a service: boxed, so that the future of every request is not as large.
            None => Box::pin(find(&worker, &name)).await.and_then(|(snapshot, service)| {
                plan(&worker, &snapshot, &service, &caller, &mut received, &mut request)
            }),
        },
        Err(error) => Err(error),
    };
    drop(snapshot);
    let mut plan = match planned {
        Ok(plan) => plan,
        Err(error) => {
            let ended = Ended::failed(&error, (version, received.grpc), started);
            worker.unrouted(Direction::Outbound).record(&ended);
            let told = (traced.as_ref(), &received, request.headers());
            unsent(&worker, told, started, |span| span.failed(&error, received.grpc));
            return reply::error(&error, received.grpc, None);
        }
    };
    if let Some(answer) = plan.filters.as_mut().and_then(|filters| filters.answer_now()) {
        plan.metrics(false).record(&Ended::new(answer.status().as_u16(), version, started));
        let told = (traced.as_ref(), &received, request.headers());
        let end = (answer.status().as_u16(), answer.headers());
        unsent(&worker, told, started, |span| span.answered_here(end, None));
        return answer;
    }
    let Some(permit) = plan.cluster.shared.limits.requests.try_acquire() else {
        let detail = format!("service {} has as many requests as its limit allows", plan.cluster.target.service);
        let error = ProxyError::unsent(Reason::RequestLimit, detail);
        let told = (traced.as_ref(), &received, request.headers());
        unsent(&worker, told, started, |span| span.failed(&error, received.grpc));
        plan.metrics(false).record(&Ended::failed(&error, (version, received.grpc), started));
        return filters::answered(plan.filters.as_deref(), reply::error(&error, received.grpc, None));
    };
    let mut injected = None;
    if !plan.rule.requests.faults.is_empty() {
        // Rare: boxed, so that the future of every request does not hold a timer.
        match Box::pin(fault::inject(&worker, &plan, &received, request.headers(), started)).await {
            Ok(done) => injected = Some(done),
            Err(aborted) => {
                let told = (traced.as_ref(), &received, request.headers());
                unsent(&worker, told, started, |span| aborted.tell(span));
                return filters::answered(plan.filters.as_deref(), aborted.answer);
            }
        }
    }
    request.body_mut().count(plan.metrics(false));
    if let Some(filters) = &plan.filters {
        mirror::start(&worker, filters.mirrors(), &received, &mut request, traced.as_ref());
    }
    // 7 to 12: endpoint, connection, send, observe, retry, answer.
    let grpc = received.grpc;
    let tries = Tries::new(&worker, &plan, started, (traced.as_ref(), injected.as_ref()));
    let mut work = pin!(tries.run(&mut received, request, permit));
    let result = match plan.timeout {
        None => work.await,
        Some(limit) => within(limit.saturating_sub(started.elapsed()), work.as_mut()).await.unwrap_or_else(|| {
            let mtls = plan.timed_out(&worker);
            let error = ProxyError::new(Reason::RequestTimeout, format!("no response head within {limit:?}"));
            plan.metrics(mtls).record(&Ended::failed(&error, (version, grpc), started));
            Err(error)
        }),
    };
    let mut response = result.unwrap_or_else(|error| {
        tracing::info!(service = %plan.cluster.target.service, %error, "request failed");
        reply::error(&error, grpc, None)
    });
    fault::answered(injected.as_ref(), &mut response);
    filters::answered(plan.filters.as_deref(), response)
}

/// Removes what only a sidecar may tell another one; whether the app asks that its trace is recorded.
fn take_own(headers: &mut HeaderMap) -> bool {
    headers.remove(CALLER_VERSION);
    headers.remove(RULE);
    headers.remove(FORCE).is_some_and(|value| value == "1")
}

/// The line of the access log, and the span, of a request that was refused.
fn refused_line(worker: &Rc<Worker>, snapshot: &Snapshot, refused: &Refused, started: Instant) {
    let Some(workload) = &snapshot.workload else { return };
    let traced = Traced::of(&workload.telemetry, refused.headers(), false, || worker.random());
    let nothing = HeaderMap::new();
    let told = (Some(&traced), &refused.received(), refused.headers());
    unsent(worker, told, started, |span| span.answered_here((refused.status, &nothing), Some(refused.error.reason)));
}

/// The span of a request that went to no endpoint, so that its trace and the access log tell why.
fn unsent(
    worker: &Worker,
    (traced, received, headers): (Option<&Traced>, &Received, &HeaderMap),
    started: Instant,
    end: impl FnOnce(&mut OpenSpan),
) {
    if let Some(traced) = traced {
        let id = SpanId::random(worker.random());
        let mut span = traced.begin(Kind::Client, id, (received, received.version), headers, &worker.spans);
        span.of_all(started);
        end(&mut span);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan::Plan, *};

    fn size_of_future<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// A future is moved and allocated whole for every request. The bounds are only ever lowered.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size_of_future(run);
        let parts = (size_of::<Body>(), size_of::<Plan>(), size_of::<Tries<'_>>(), size_of::<Received>());
        assert!(size <= 4200, "{size} bytes, of {parts:?}");
        let (body, received) = (size_of::<Body>(), size_of::<Received>());
        assert!(body <= 160 && received <= 200, "{body} and {received} bytes");
    }
}
