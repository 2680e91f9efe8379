//! One try: endpoint, connection, request and response head, and what came of it.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response};
use smallvec::SmallVec;
use weft_policy::{circuit::Outcome, deadline, fields::Fields, session::of_target, trace::SpanId};

use super::Tries;
use crate::{
    error::{ProxyError, Reason},
    http::{
        CALLER_VERSION, RULE, UNSENT,
        body::{Body, Finish, Incoming, Leg, LoadGuard, grpc_status},
        forward::{Received, mark_caller_version},
    },
    outbound::{
        admission::{Admission, Asked, outcome_of_error},
        source::key,
    },
    snapshot::EndpointState,
    telemetry::{span::Kind, trace::OpenSpan},
    upstream::{Key, Rules},
};

/// How one try ended.
pub(super) struct Tried {
    pub(super) result: Result<Answered, ProxyError>,
    /// The endpoint, when this is to be held against it.
    pub(super) failed: SmallVec<[Arc<EndpointState>; 1]>,
    pub(super) mtls: bool,
    /// For trace and access log.
    pub(super) span: OpenSpan,
}

/// A response, and whether the sidecar beside the app made it because nothing had reached the app.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) finish: Finish,
    pub(super) unsent: bool,
}

impl Tries<'_> {
    /// One try: endpoint, connection, request, response head. After an error `request` holds the request again when
    /// not a byte of it was sent. Meanwhile `trying` says who is tried; `quiet`, where there are two at once, whether the other
    /// is the line of the access log.
    pub(super) async fn attempt(
        &self,
        failed: &[Arc<EndpointState>],
        received: &Received,
        request: &mut Option<Request<Body>>,
        trying: &RefCell<Option<Admission>>,
        quiet: Option<&Rc<Cell<bool>>>,
    ) -> Tried {
        let (worker, cluster) = (self.worker, &self.plan.cluster);
        let id = SpanId::random(self.worker.random());
        let mut span = self.span(id, received, request.as_ref());
        if let Some(quiet) = quiet {
            span.beside(quiet);
        }
        let bound = self.plan.session.as_ref().and_then(|session| session.endpoint());
        let asked = Asked { hash: Some(self.plan.hash), bound, repeatable: self.repeatable, failed };
        let admission = match Admission::ask(worker, cluster, &asked) {
            Ok(admission) => admission,
            Err(error) => {
                span.failed(&error, received.grpc);
                return Tried { result: Err(error), failed: SmallVec::new(), mtls: self.mtls, span };
            }
        };
        let endpoint = Arc::clone(admission.endpoint());
        trying.replace(Some(admission));
        let key = key(&endpoint, cluster, received);
        let mtls = key.is_mesh();
        let mut load = LoadGuard::new(Arc::clone(&endpoint), worker.clock);
        let begun = Instant::now();
        span.to(&endpoint, key.address(), key.is_http2());
        let exchanged = match self.leg(received, request, &key, id) {
            Ok(()) => self.exchange(&key, &endpoint, request).await,
            Err(error) => Err(error),
        };
        let (outcome, unsent) = match &exchanged {
            Ok(response) if mtls && response.headers().contains_key(UNSENT) => (Outcome::ConnectFailure, true),
            Ok(response) => (outcome_of(response, received.grpc), false),
            Err(error) => (outcome_of_error(error), false),
        };
        if let Some(admission) = trying.take() {
            admission.record(worker, cluster, outcome, &mut span);
        }
        let bad = !matches!(outcome, Outcome::Success | Outcome::Neutral);
        if bad || exchanged.is_ok() {
            load.observe(begun.elapsed(), bad);
        }
        match &exchanged {
            Ok(response) => span.add(|span| span.answered(response.status().as_u16(), response.headers())),
            Err(error) => span.failed(error, received.grpc),
        }
        let result = exchanged.map(|mut response| {
            response.headers_mut().remove(UNSENT);
            // One failure does not move a session: it moves when its endpoint is gone or ejected.
            if let (Some(bound), Some(session)) = (&self.plan.session, &self.plan.rule.session)
                && (bound.endpoint() == Some(endpoint.session) || !self.stays(&[]))
            {
                bound.answer(worker, session, (of_target(&cluster.target), &endpoint), response.headers_mut());
            }
            let finish = Finish {
                metrics: Some(self.plan.metrics(mtls).clone()),
                started: self.started,
                status: response.status().as_u16(),
                version: received.version,
                grpc: received.grpc.then(|| grpc_status(response.headers())).flatten(),
                reason: None,
                leg: Leg::Endpoint(load),
                permit: None,
                place: None,
                complete: false,
                span: OpenSpan::default(),
            };
            Answered { response, finish, unsent }
        });
        Tried { result, failed: bad.then_some(endpoint).into_iter().collect(), mtls, span }
    }

    /// The span of the next try.
    fn span(&self, id: SpanId, received: &Received, request: Option<&Request<Body>>) -> OpenSpan {
        let Some(traced) = self.traced else { return OpenSpan::default() };
        let none = HeaderMap::new();
        let headers = request.map_or(&none, Request::headers);
        let mut span = traced.begin(Kind::Client, id, (received, received.version), headers, &self.worker.spans);
        let resend = self.number.replace(self.number.get() + 1);
        span.of_request(self.started, self.plan.timeout);
        if resend == 0 {
            self.note_what_was_done(&mut span, received);
        }
        span.add(|span| {
            span.resend = resend;
            span.service = Some(self.plan.cluster.target.clone());
            span.route = self.plan.rule.tag.clone();
        });
        span
    }

    /// What has been done to the request before its first try: copies of it, a fault.
    fn note_what_was_done(&self, span: &mut OpenSpan, received: &Received) {
        if let Some(injected) = self.injected {
            injected.note(span);
        }
        if let Some(filters) = self.plan.filters.as_ref().filter(|_| received.upgrade.is_none()) {
            for mirror in filters.mirrors() {
                span.event("weft.mirror", || [("weft.service", mirror.target.to_string())]);
            }
        }
    }

    /// Makes of a request what is sent on this connection.
    fn leg(
        &self,
        received: &Received,
        request: &mut Option<Request<Body>>,
        key: &Key,
        span: SpanId,
    ) -> Result<(), ProxyError> {
        let Some(leg) = request else {
            return Err(ProxyError::new(Reason::Internal, "the request was already sent"));
        };
        if key.is_mesh() {
            mark_caller_version(leg, received.version, self.fresh);
            if let Some(tag) = &self.plan.rule.tag {
                leg.headers_mut().insert(RULE, tag.clone());
            }
        } else if Fields::of(leg.headers()).has(Fields::OWN) {
            // Of an earlier try through the mesh.
            leg.headers_mut().remove(CALLER_VERSION);
            leg.headers_mut().remove(RULE);
        }
        if let Some(traced) = &self.traced {
            traced.tell(leg.headers_mut(), span);
        }
        if let Some(left) = self.left() {
            deadline::set(leg.headers_mut(), received.grpc, left);
        }
        received.leg(leg, key.is_http2())
    }

    async fn exchange(
        &self,
        key: &Key,
        endpoint: &EndpointState,
        request: &mut Option<Request<Body>>,
    ) -> Result<Response<Incoming>, ProxyError> {
        let cluster = &self.plan.cluster;
        let rules = Rules::of(&cluster.policy, &cluster.shared.limits).fresh(self.fresh);
        let lease = self.worker.pools.lease(key, &rules).await?;
        // A sidecar that is there does not mean that the app behind it is, when it last said that it is not.
        if !(key.is_mesh() && endpoint.health.is_failing()) {
            cluster.shared.breaker.reached(&cluster.policy.circuit_breaker);
        }
        let mut sending = pin!(lease.send(request));
        match self.plan.rule.requests.backend_timeout {
            None => sending.await,
            Some(limit) => within(limit, sending.as_mut()).await.unwrap_or_else(|| {
                Err(ProxyError::new(Reason::TryTimeout, format!("no response head within {limit:?}")))
            }),
        }
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

fn outcome_of(response: &Response<Incoming>, grpc: bool) -> Outcome {
    match grpc.then(|| grpc_status(response.headers())).flatten() {
        Some(code) => Outcome::grpc(code),
        None => Outcome::http(response.status()),
    }
}
