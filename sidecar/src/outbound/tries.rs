//! The tries of one request (phases 7 to 12): endpoint, connection, request, what came of it, and whether it is sent
//! again.

mod attempt;
mod hedge;

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, Request, Response, StatusCode, Version};
use smallvec::SmallVec;
use weft_metrics::TraceId;
use weft_policy::{
    limits::Permit,
    retry::{self, Attempt, Decision, Failure, Stop},
};

use super::{
    admission::{is_available, of_session},
    fault::Injected,
    plan::Plan,
    source::Source,
};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{
        body::{Body, grpc_status},
        forward::Received,
    },
    snapshot::EndpointState,
    telemetry::{
        Ended,
        trace::{OpenSpan, Traced},
    },
};

pub use self::attempt::within;
use self::attempt::{Answered, Tried};

/// The tries of one request.
pub struct Tries<'a> {
    worker: &'a Rc<Worker>,
    plan: &'a Plan,
    started: Instant,
    /// Endpoints that failed this request.
    failed: SmallVec<[Arc<EndpointState>; 1]>,
    mtls: bool,
    /// A failure can be hidden from the caller by another try.
    repeatable: bool,
    /// The last try failed with its connection: the next one takes a new one.
    fresh: bool,
    /// Its place among the retries in flight.
    place: Option<Permit>,
    /// The trace that each try is told of.
    traced: Option<&'a Traced>,
    /// What a fault does to this request.
    injected: Option<&'a Injected>,
    /// Tries so far.
    number: Cell<u32>,
}

/// What follows from a try.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum Next {
    Done(Result<Response<Body>, ProxyError>),
    /// After this time, until which the span is that of a caller who waits.
    Again(Duration, OpenSpan),
}

impl<'a> Tries<'a> {
    pub fn new(
        worker: &'a Rc<Worker>,
        plan: &'a Plan,
        started: Instant,
        (traced, injected): (Option<&'a Traced>, Option<&'a Injected>),
    ) -> Self {
        Self {
            worker,
            plan,
            started,
            failed: SmallVec::new(),
            mtls: false,
            repeatable: false,
            fresh: false,
            place: None,
            traced,
            injected,
            number: Cell::new(0),
        }
    }

    /// Tries until there is an answer for the caller, or no use in trying.
    pub async fn run(
        mut self,
        received: &mut Received,
        mut request: Request<Body>,
        permit: Permit,
    ) -> Result<Response<Body>, ProxyError> {
        let shared = &self.plan.cluster.shared;
        let policy = &self.plan.rule.requests;
        shared.budget.request(self.worker.clock.now());
        request.body_mut().set_idle(policy.stream_idle);
        let retry = &policy.retry;
        self.repeatable = retry.attempts > 0 && retry::repeatable(retry, &received.method, request.headers());
        let mut source = Source::new(request, received, retry.attempts > 0);
        let (mut permit, mut number) = (Some(permit), 0);
        loop {
            number += 1;
            let tried = match retry.hedge_after {
                Some(after) if number == 1 && self.repeatable && !self.stays(&self.failed) => {
                    Box::pin(self.hedged(after, received, &mut source)).await
                }
                _ => self.attempt(&self.failed, received, &mut source.request, &self.plan.trying, None).await,
            };
            self.mtls = tried.mtls;
            self.failed.extend(tried.failed);
            let ended = (tried.result, tried.span);
            match self.next(received, &mut source, number, ended, &mut permit) {
                Next::Done(answer) => return answer,
                Next::Again(Duration::ZERO, mut span) => span.retried(),
                // Rare: boxed, so that the future of every request does not hold a timer.
                Next::Again(after, span) => Box::pin(wait(after, span)).await,
            }
        }
    }

    /// What follows from a try.
    fn next(
        &mut self,
        received: &mut Received,
        source: &mut Source,
        number: u32,
        (result, mut span): (Result<Answered, ProxyError>, OpenSpan),
        permit: &mut Option<Permit>,
    ) -> Next {
        let Some(failure) = failure_of(&result, received.grpc) else {
            self.retries_ended(number, true);
            return Next::Done(self.answer(received, result, span, permit.take()));
        };
        // A retry that has ended leaves its place to the next.
        self.place = None;
        let circuit = &self.plan.cluster.shared.circuit;
        let response = result.as_ref().ok().map(|answered| answered.response.headers());
        match self.decide(received, source, number, failure, response) {
            Decision::Stop(stop) => {
                // Most answers of 400 and above are nobody's failure.
                if stop != Stop::NotRetriable {
                    circuit.not_retried(stop);
                    span.event("weft.not_retried", || [("weft.reason", stop.as_str().to_owned())]);
                }
                self.retries_ended(number, stop == Stop::NotRetriable && result.is_ok());
                Next::Done(self.answer(received, result, span, permit.take()))
            }
            Decision::Retry { after, permit: place } => {
                let word = word(&result);
                circuit.retried(word);
                span.event("weft.retry", || {
                    [("weft.reason", word.to_owned()), ("weft.retry.after", format!("{after:.1?}"))]
                });
                span.ended(None, true);
                self.place = Some(place);
                // A far sidecar whose connection to the app broke answers 502.
                self.fresh = matches!(failure, Failure::Reset | Failure::Status(StatusCode::BAD_GATEWAY));
                discard(result);
                source.refill();
                Next::Again(after, span)
            }
        }
    }

    /// Counts the end of a request that was sent more than once.
    fn retries_ended(&self, number: u32, well: bool) {
        if number > 1 {
            self.plan.cluster.shared.circuit.retries_ended(well);
        }
    }

    /// The request is of a session whose endpoint is there and in, and not among these: another one would only move it.
    fn stays(&self, failed: &[Arc<EndpointState>]) -> bool {
        let bound = self.plan.session.as_ref().and_then(|session| session.endpoint());
        bound.is_some_and(|bound| of_session(&self.plan.cluster, bound, failed).is_some())
    }

    fn decide(
        &self,
        received: &Received,
        source: &Source,
        number: u32,
        failure: Failure,
        response: Option<&HeaderMap>,
    ) -> Decision {
        let none = HeaderMap::new();
        let shared = &self.plan.cluster.shared;
        let attempt = Attempt {
            method: &received.method,
            headers: source.headers().unwrap_or(&none),
            number,
            failure,
            replayable: source.is_replayable(),
            response,
            elsewhere: self.plan.cluster.endpoints.iter().any(|endpoint| is_available(endpoint, &self.failed)),
            left: self.left(),
        };
        let retry = &self.plan.rule.requests.retry;
        let (now, random) = (self.worker.clock.now(), self.worker.random());
        retry::decide(retry, &attempt, &shared.budget, &shared.limits, now, SystemTime::now(), random)
    }

    /// The policy tries again after this.
    fn is_retried(&self, result: &Result<Answered, ProxyError>, grpc: bool) -> bool {
        let retry = &self.plan.rule.requests.retry;
        match failure_of(result, grpc) {
            Some(Failure::Status(status)) => retry.codes.contains(&status),
            Some(Failure::Grpc(code)) => retry.grpc_codes.contains(&code),
            other => other.is_some(),
        }
    }

    fn deadline(&self) -> Option<tokio::time::Instant> {
        self.plan.deadline(self.started)
    }

    fn left(&self) -> Option<Duration> {
        Some(self.deadline()?.saturating_duration_since(tokio::time::Instant::now()))
    }

    fn answer(
        &mut self,
        received: &mut Received,
        result: Result<Answered, ProxyError>,
        span: OpenSpan,
        permit: Option<Permit>,
    ) -> Result<Response<Body>, ProxyError> {
        let (ends, trace) = ((received.version, received.grpc), span.trace());
        let Answered { response, mut finish, .. } = result.map_err(|error| self.fail(error, ends, trace))?;
        finish.permit = permit;
        finish.span = span;
        finish.place = self.place.take();
        let times = received.times(self.plan.rule.requests.stream_idle, self.deadline());
        let guard = || self.worker.context.drain.guard();
        received.answer(response, finish, times, guard).map_err(|error| self.fail(error, ends, trace))
    }

    fn fail(&self, error: ProxyError, ends: (Version, bool), trace: Option<TraceId>) -> ProxyError {
        self.plan.metrics(self.mtls).record(&Ended { trace, ..Ended::failed(&error, ends, self.started) });
        error
    }
}

/// Waits for the time of the next try. A caller that leaves meanwhile is a line of the access log.
async fn wait(after: Duration, span: OpenSpan) {
    let mut span = span.waits();
    tokio::time::sleep(after).await;
    span.retried();
}

/// What of a result may be a reason to try again. `None`: it is the caller's.
fn failure_of(result: &Result<Answered, ProxyError>, grpc: bool) -> Option<Failure> {
    match result {
        Ok(Answered { unsent: true, .. }) => Some(Failure::Unsent),
        Ok(Answered { response, .. }) => match grpc.then(|| grpc_status(response.headers())).flatten() {
            Some(0) => None,
            Some(code) => Some(Failure::Grpc(code)),
            None if response.status().as_u16() >= 400 => Some(Failure::Status(response.status())),
            None => None,
        },
        Err(error) => match error.reason {
            Reason::NoEndpoints
            | Reason::CircuitOpen
            | Reason::ConnectionLimit
            | Reason::PendingLimit
            | Reason::Internal
            | Reason::BadRequest => None,
            _ if error.refused => Some(Failure::Refused),
            _ if error.unsent => Some(Failure::Unsent),
            Reason::TryTimeout => Some(Failure::TryTimeout),
            _ => Some(Failure::Reset),
        },
    }
}

/// Why a request is sent again, for metrics.
fn word(result: &Result<Answered, ProxyError>) -> &'static str {
    match result {
        Ok(Answered { unsent: true, .. }) => "unsent",
        Ok(Answered { response, .. }) if response.status() == StatusCode::OK => "grpc_status",
        Ok(_) => "status",
        Err(error) => error.reason.as_str(),
    }
}

/// An answer that the caller does not get is not in the books.
fn discard(result: Result<Answered, ProxyError>) {
    if let Ok(mut answered) = result {
        answered.finish.metrics = None;
    }
}
