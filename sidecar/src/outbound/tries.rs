//! The tries of one request (phases 7 to 12): endpoint, connection, request, what came of it, and whether it is sent
//! again.

use std::{
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use smallvec::SmallVec;
use weft_policy::{
    balance::{self, Nanos},
    breaker::{self, Entry},
    circuit::Outcome,
    deadline,
    limits::Permit,
    model::Protocol,
    outlier,
    retry::{self, Attempt, Decision, Failure},
};

use super::plan::Plan;
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{
        CALLER_VERSION, UNSENT,
        body::{Body, Finish, LoadGuard, Replay},
        forward::{Received, mark_caller_version},
    },
    snapshot::EndpointState,
    upstream::{Key, Lease, Rules},
};

/// The tries of one request.
pub struct Tries<'a> {
    worker: &'a Rc<Worker>,
    plan: &'a Plan,
    started: Instant,
    deadline: Option<tokio::time::Instant>,
    /// Endpoints that failed this request.
    failed: SmallVec<[Arc<EndpointState>; 1]>,
    mtls: bool,
    /// A failure can be hidden from the caller by another try.
    repeatable: bool,
    /// The last try failed with its connection: the next one takes a new one.
    fresh: bool,
    /// Its place among the retries in flight.
    place: Option<Permit>,
}

/// What the next try is made of.
struct Source {
    /// Not sent yet.
    request: Option<Request<Body>>,
    /// What a request that was sent is made of again.
    spare: Option<Box<Spare>>,
}

struct Spare {
    head: Request<Body>,
    /// `None`: there is no body.
    replay: Option<Replay>,
}

/// A response, and whether the sidecar beside the app made it because nothing had reached the app.
struct Answered {
    response: Response<Incoming>,
    finish: Finish,
    unsent: bool,
}

/// What follows from a try.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum Next {
    Done(Result<Response<Body>, ProxyError>),
    Again(Duration),
}

/// What the circuits let through, and wait to hear of.
struct Admission {
    begun: Nanos,
    endpoint: Arc<EndpointState>,
    probe: Option<outlier::Probe>,
    breaker: Option<breaker::Probe>,
}

impl<'a> Tries<'a> {
    pub fn new(
        worker: &'a Rc<Worker>,
        plan: &'a Plan,
        started: Instant,
        deadline: Option<tokio::time::Instant>,
    ) -> Self {
        let failed = SmallVec::new();
        Self { worker, plan, started, deadline, failed, mtls: false, repeatable: false, fresh: false, place: None }
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
            let result = self.attempt(received, &mut source.request).await;
            match self.next(received, &mut source, number, result, &mut permit) {
                Next::Done(answer) => return answer,
                Next::Again(Duration::ZERO) => {}
                // Rare: boxed, so that the future of every request does not hold a timer.
                Next::Again(after) => Box::pin(tokio::time::sleep(after)).await,
            }
        }
    }

    /// What follows from a try.
    fn next(
        &mut self,
        received: &mut Received,
        source: &mut Source,
        number: u32,
        result: Result<Answered, ProxyError>,
        permit: &mut Option<Permit>,
    ) -> Next {
        let Some(failure) = failure_of(&result, received.grpc) else {
            return Next::Done(self.answer(received, result, permit.take()));
        };
        let circuit = &self.plan.cluster.shared.circuit;
        let response = result.as_ref().ok().map(|answered| answered.response.headers());
        match self.decide(received, source, number, failure, response) {
            Decision::Stop(stop) => {
                circuit.not_retried(stop);
                Next::Done(self.answer(received, result, permit.take()))
            }
            Decision::Retry { after, permit: place } => {
                circuit.retried(word(&result));
                self.place = Some(place);
                // A far sidecar whose connection to the app broke answers 502.
                self.fresh = matches!(failure, Failure::Reset | Failure::Status(StatusCode::BAD_GATEWAY));
                discard(result);
                source.refill();
                Next::Again(after)
            }
        }
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
            elsewhere: self.plan.cluster.endpoints.iter().any(|endpoint| self.is_available(endpoint)),
            left: self.left(),
        };
        let retry = &self.plan.rule.requests.retry;
        let (now, random) = (self.worker.clock.now(), self.worker.random());
        retry::decide(retry, &attempt, &shared.budget, &shared.limits, now, SystemTime::now(), random)
    }

    fn left(&self) -> Option<Duration> {
        Some(self.deadline?.saturating_duration_since(tokio::time::Instant::now()))
    }

    fn answer(
        &mut self,
        received: &mut Received,
        result: Result<Answered, ProxyError>,
        permit: Option<Permit>,
    ) -> Result<Response<Body>, ProxyError> {
        let Answered { response, mut finish, .. } = result.map_err(|error| self.fail(error))?;
        finish.permit = permit;
        finish.place = self.place.take();
        let times = received.times(self.plan.rule.requests.stream_idle, self.deadline);
        let guard = || self.worker.context.drain.guard();
        received.answer(response, finish, times, guard).map_err(|error| self.fail(error))
    }

    fn fail(&self, error: ProxyError) -> ProxyError {
        let metrics = &self.plan.cluster.shared.http[usize::from(self.mtls)];
        metrics.record(error.reason.status(), Some(error.reason), self.started.elapsed());
        error
    }

    /// One try: endpoint, connection, request, response head. After an error `request` holds the request again when
    /// not a byte of it was sent.
    async fn attempt(
        &mut self,
        received: &Received,
        request: &mut Option<Request<Body>>,
    ) -> Result<Answered, ProxyError> {
        let admission = self.admit()?;
        let endpoint = Arc::clone(&admission.endpoint);
        let key = self.key(&endpoint, received);
        self.mtls = key.is_mesh();
        let Some(mut leg) = request.take() else {
            return Err(ProxyError::new(Reason::Internal, "the request was already sent"));
        };
        if self.mtls {
            mark_caller_version(&mut leg, received.version, self.fresh);
        } else if !self.failed.is_empty() {
            // Of an earlier try through the mesh.
            leg.headers_mut().remove(CALLER_VERSION);
        }
        if let Some(left) = self.left() {
            deadline::set(leg.headers_mut(), received.grpc, left);
        }
        *request = Some(received.leg(leg, key.is_http2())?);
        let mut load = LoadGuard::new(Arc::clone(&endpoint), self.worker.clock);
        let begun = Instant::now();
        match self.exchange(&key, &endpoint, request).await {
            Ok((mut response, lease)) => {
                let unsent = self.mtls && response.headers_mut().remove(UNSENT).is_some();
                let outcome = if unsent { Outcome::ConnectFailure } else { outcome_of(&response, received.grpc) };
                let failed = !matches!(outcome, Outcome::Success | Outcome::Neutral);
                load.observe(begun.elapsed(), failed);
                self.record(admission, outcome);
                if failed {
                    self.failed.push(endpoint);
                }
                let finish = Finish {
                    metrics: Some(self.plan.cluster.shared.http[usize::from(self.mtls)].clone()),
                    started: self.started,
                    status: response.status().as_u16(),
                    reason: None,
                    load: Some(load),
                    lease: Some(lease),
                    permit: None,
                    place: None,
                    complete: false,
                };
                Ok(Answered { response, finish, unsent })
            }
            Err(error) => {
                let outcome = outcome_of_error(&error);
                self.record(admission, outcome);
                if outcome != Outcome::Neutral {
                    load.observe(begun.elapsed(), true);
                    self.failed.push(endpoint);
                }
                Err(error)
            }
        }
    }

    /// Asks the circuits and picks an endpoint.
    fn admit(&self) -> Result<Admission, ProxyError> {
        let cluster = &self.plan.cluster;
        let (shared, now) = (&cluster.shared, self.worker.clock.now());
        if cluster.endpoints.is_empty() {
            // Before the breaker: its one probe is for something that can answer.
            return Err(self.no_endpoints());
        }
        let breaker = match shared.breaker.enter(&cluster.policy.circuit_breaker, now) {
            Entry::Pass => None,
            Entry::Probe(probe, change) => {
                shared.circuit.service_changed(change);
                Some(probe)
            }
            Entry::Refused(until) => {
                let wait = Duration::from_nanos(until.0.saturating_sub(now.0)).as_millis();
                let service = &cluster.target.service;
                let detail = format!("service {service} could not be reached; it is tried again in {wait} ms");
                return Err(ProxyError::unsent(Reason::CircuitOpen, detail));
            }
        };
        if self.failed.is_empty() {
            let healths = cluster.endpoints.iter().map(|endpoint| &endpoint.health);
            if let Some(taken) = shared.ejections.take_probe(now, self.repeatable, healths) {
                let endpoint = Arc::clone(&cluster.endpoints[taken.index]);
                shared.circuit.endpoint_changed(endpoint.address, taken.transition);
                return Ok(Admission { begun: now, endpoint, probe: Some(taken.probe), breaker });
            }
        }
        Ok(Admission { begun: now, endpoint: self.pick()?, probe: None, breaker })
    }

    /// An endpoint that has not failed this request, else the one that failed first.
    fn pick(&self) -> Result<Arc<EndpointState>, ProxyError> {
        let cluster = &self.plan.cluster;
        let mut random = || self.worker.random();
        let request =
            balance::Request { hash: Some(self.plan.hash), now: self.worker.clock.now(), random: &mut random };
        let picked = cluster.balancer.pick(&cluster.endpoints, request, |endpoint| self.is_available(endpoint));
        picked.or(self.failed.first()).or(cluster.endpoints.first()).cloned().ok_or_else(|| self.no_endpoints())
    }

    fn no_endpoints(&self) -> ProxyError {
        let detail = format!("service {} has no healthy endpoint", self.plan.cluster.target.service);
        ProxyError::unsent(Reason::NoEndpoints, detail)
    }

    fn is_available(&self, endpoint: &Arc<EndpointState>) -> bool {
        !endpoint.health.is_out() && !self.failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint))
    }

    /// Tells both circuits how a try ended.
    fn record(&self, admission: Admission, outcome: Outcome) {
        let cluster = &self.plan.cluster;
        let (shared, policy) = (&cluster.shared, &cluster.policy);
        let (begun, now, random) = (admission.begun, self.worker.clock.now(), self.worker.random());
        let outlier = &policy.outlier_detection;
        let change = match admission.probe {
            Some(probe) => probe.record(outlier, outcome, now, random),
            None => admission.endpoint.health.record(outlier, outcome, begun, now, random),
        };
        if let Some(change) = change {
            shared.circuit.endpoint_changed(admission.endpoint.address, change);
        }
        let change = match admission.breaker {
            Some(probe) => probe.record(&policy.circuit_breaker, outcome, now, random),
            None => shared.breaker.record(&policy.circuit_breaker, outcome, begun, now, random),
        };
        if let Some(change) = change {
            shared.circuit.service_changed(change);
        }
    }

    fn key(&self, endpoint: &EndpointState, received: &Received) -> Key {
        if let Some(mesh) = &endpoint.endpoint.mesh {
            return Key::mesh(mesh, &self.plan.cluster.target);
        }
        let protocol = self.plan.protocol;
        let http2 = protocol.is_http2()
            || !matches!(protocol, Protocol::Http | Protocol::Http1) && received.version == http::Version::HTTP_2;
        Key::Plain { address: endpoint.address, http2 }
    }

    async fn exchange(
        &self,
        key: &Key,
        endpoint: &EndpointState,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Incoming>, Lease), ProxyError> {
        let cluster = &self.plan.cluster;
        let rules = Rules::of(&cluster.policy, &cluster.shared.limits).fresh(self.fresh);
        let mut lease = self.worker.pools.lease(key, &rules).await?;
        // A sidecar that is there does not mean that the app behind it is, when it last said that it is not.
        if !(key.is_mesh() && endpoint.health.is_failing()) {
            cluster.shared.breaker.reached(&cluster.policy.circuit_breaker);
        }
        let response = {
            let mut sending = pin!(lease.send(request));
            match self.plan.rule.requests.backend_timeout {
                None => sending.await,
                Some(limit) => within(limit, sending.as_mut()).await.unwrap_or_else(|| {
                    Err(ProxyError::new(Reason::TryTimeout, format!("no response head within {limit:?}")))
                }),
            }
        };
        Ok((response?, lease))
    }
}

/// The result of `work`, or `None` when the time is over. The timer is boxed: most requests have none.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut timer = Box::pin(tokio::time::sleep(limit));
    tokio::select! {
        biased;
        result = work => Some(result),
        () = &mut timer => None,
    }
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

/// The status of a gRPC answer without messages (trailers-only).
fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn outcome_of(response: &Response<Incoming>, grpc: bool) -> Outcome {
    match grpc.then(|| grpc_status(response.headers())).flatten() {
        Some(code) => Outcome::grpc(code),
        None => Outcome::http(response.status()),
    }
}

fn outcome_of_error(error: &ProxyError) -> Outcome {
    match error.reason {
        Reason::ConnectTimeout
        | Reason::ConnectionRefused
        | Reason::ConnectFailed
        | Reason::TlsHandshake
        | Reason::TlsIdentityMismatch
        | Reason::TlsCertificate => Outcome::ConnectFailure,
        Reason::TryTimeout => Outcome::Timeout,
        // A pooled connection that had ended says nothing of the endpoint.
        Reason::ConnectionTerminated if error.unsent && !error.refused => Outcome::Neutral,
        Reason::ConnectionTerminated => Outcome::Reset,
        Reason::ProtocolError => Outcome::Unavailable,
        _ => Outcome::Neutral,
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

impl Source {
    fn new(mut request: Request<Body>, received: &Received, again: bool) -> Self {
        if !again || received.upgrade.is_some() {
            return Self { request: Some(request), spare: None };
        }
        let head = head(&request);
        if received.is_bodyless() {
            return Self { request: Some(request), spare: Some(Box::new(Spare { head, replay: None })) };
        }
        let Some(replay) = Replay::take(request.body_mut()) else {
            return Self { request: Some(request), spare: None };
        };
        *request.body_mut() = replay.next_try();
        Self { request: Some(request), spare: Some(Box::new(Spare { head, replay: Some(replay) })) }
    }

    fn headers(&self) -> Option<&HeaderMap> {
        self.spare.as_ref().map(|spare| spare.head.headers()).or(self.request.as_ref().map(Request::headers))
    }

    fn is_replayable(&self) -> bool {
        self.request.is_some()
            || self.spare.as_ref().is_some_and(|spare| spare.replay.as_ref().is_none_or(Replay::is_complete))
    }

    /// Makes the request for the next try, unless the last one was not sent at all.
    fn refill(&mut self) {
        if let (None, Some(spare)) = (&self.request, &self.spare) {
            let mut request = head(&spare.head);
            if let Some(replay) = &spare.replay {
                *request.body_mut() = replay.next_try();
            }
            self.request = Some(request);
        }
    }
}

/// A request with the same head and no body.
fn head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
