//! The filters of the rule and the backend that a request follows: to the request before it is sent, to the answer
//! before the caller gets it. `exchange` asks only for rules that have filters; what they do is in `weft_policy`.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, header};
use smallvec::SmallVec;
use weft_policy::{
    cors::Decision,
    filter::Redirected,
    model::{Filters, PathMatch, RouteRule, Target, WeightedBackend},
};

use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{body::Body, forward::Received, reply},
    snapshot::{Cluster, Snapshot},
};

/// What the filters have done to one request, and what is left to do to its answer.
pub struct Applied {
    rule: Arc<RouteRule>,
    /// Index of the chosen backend, when it has changes for the answer.
    backend: Option<usize>,
    cors: Option<Decision>,
    mirrors: SmallVec<[Arc<Cluster>; 1]>,
    answer: Option<Response<Body>>,
}

/// Which way a request goes.
pub struct Route<'a> {
    /// The rule.
    pub rule: &'a Arc<RouteRule>,
    /// What of the path has led to it.
    pub matched: &'a PathMatch,
    /// The service port that was called.
    pub own: Target,
}

/// From the rule to a backend, `bound` when the request is of a session, through the filters of both. A rule that answers by itself may have
/// no backend: its target is the service that was called.
///
/// # Errors
/// When there is no valid backend.
pub fn to_backend(
    worker: &Worker,
    snapshot: &Snapshot,
    route: Route,
    bound: Option<usize>,
    received: &mut Received,
    request: &mut Request<Body>,
) -> Result<(Target, Option<Box<Applied>>), ProxyError> {
    let Route { rule, matched, own } = route;
    let mut applied = None;
    if !rule.filters.is_empty() {
        let filters = Applied::before_backend(rule, matched, own.port, received, request)?;
        if filters.answer.is_some() {
            return Ok((own, Some(filters)));
        }
        applied = Some(filters);
    }
    let bound = bound.and_then(|index| rule.backends.get(index));
    let picked = bound
        .or_else(|| rule.pick_backend(worker.random()))
        .and_then(|backend| Some((backend, backend.target.as_ref()?)));
    let (backend, target) = picked.ok_or_else(|| {
        ProxyError::unsent(Reason::InvalidBackend, format!("route {} has no valid backend", rule.name))
    })?;
    if applied.is_some() || !backend.filters.is_empty() {
        let filters = applied.get_or_insert_with(|| Applied::nothing(rule));
        filters.after_backend(worker, snapshot, backend, matched, received, request);
    }
    Ok((target.clone(), applied))
}

impl Applied {
    /// No filter of the rule; its backend may have some.
    fn nothing(rule: &Arc<RouteRule>) -> Box<Self> {
        Box::new(Self { rule: Arc::clone(rule), backend: None, cors: None, mirrors: SmallVec::new(), answer: None })
    }

    /// The filters of a rule whose match was `matched`: an answer at once, or the request changed. `port` is the
    /// Service's.
    ///
    /// # Errors
    /// When the redirect that the rule asks for cannot be written.
    fn before_backend(
        rule: &Arc<RouteRule>,
        matched: &PathMatch,
        port: u16,
        received: &mut Received,
        request: &mut Request<Body>,
    ) -> Result<Box<Self>, ProxyError> {
        let mut applied = Self::nothing(rule);
        let filters = &rule.filters;
        // A preflight is about the request that would follow: it comes before the redirect of that one.
        if let Some(cors) = &filters.cors {
            if let Some(headers) = cors.preflight(&received.method, request.headers()) {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::NO_CONTENT;
                *answer.headers_mut() = headers;
                explain(&mut answer, "preflight", rule);
                applied.answer = Some(answer);
                return Ok(applied);
            }
            applied.cors = Some(cors.decide(request.headers()));
        }
        if let Some(redirect) = &filters.redirect {
            let from = Redirected { authority: &received.authority, path: &received.path, matched, port };
            let location = redirect.location(from).ok_or_else(|| {
                ProxyError::unsent(Reason::Internal, format!("the redirect of route {} is no URL", rule.name))
            })?;
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = redirect.status;
            answer.headers_mut().insert(header::LOCATION, location);
            explain(&mut answer, "redirect", rule);
            applied.answer = Some(answer);
            return Ok(applied);
        }
        change(filters, matched, received, request);
        Ok(applied)
    }

    /// The filters of the backend that was chosen, and who gets a copy: of the changed request, as the backend does. A
    /// rewrite of the backend takes the place of the rule's.
    fn after_backend(
        &mut self,
        worker: &Worker,
        snapshot: &Snapshot,
        backend: &WeightedBackend,
        matched: &PathMatch,
        received: &mut Received,
        request: &mut Request<Body>,
    ) {
        change(&backend.filters, matched, received, request);
        if !backend.filters.response_headers.is_empty() {
            self.backend = self.rule.backends.iter().position(|candidate| std::ptr::eq(candidate, backend));
        }
        let mirrors = self.rule.filters.mirrors.iter().chain(&backend.filters.mirrors);
        let chosen = mirrors.filter(|mirror| mirror.chooses(worker.random()));
        self.mirrors = chosen.filter_map(|mirror| snapshot.clusters.get(&mirror.target).cloned()).collect();
    }

    /// The answer of a rule that answers by itself, ready for the caller.
    pub fn answer_now(&mut self) -> Option<Response<Body>> {
        let mut answer = self.answer.take()?;
        self.change_answer(&mut answer);
        Some(answer)
    }

    /// Who gets a copy.
    #[must_use]
    pub fn mirrors(&self) -> &[Arc<Cluster>] {
        &self.mirrors
    }

    /// The backend's changes come before the rule's: the other way round than on the way in.
    fn change_answer(&self, answer: &mut Response<Body>) {
        let backend = self.backend.and_then(|index| self.rule.backends.get(index));
        for change in backend.iter().flat_map(|backend| &backend.filters.response_headers) {
            change.apply(answer.headers_mut());
        }
        for change in &self.rule.filters.response_headers {
            change.apply(answer.headers_mut());
        }
        if let (Some(decision), Some(cors)) = (&self.cors, &self.rule.filters.cors) {
            cors.answer(decision, answer.headers_mut());
        }
    }
}

/// The answer as the caller gets it, also one that we made ourselves: without the headers of CORS a page could not
/// even read that there was an error.
pub fn answered(applied: Option<&Applied>, mut answer: Response<Body>) -> Response<Body> {
    if let Some(applied) = applied {
        applied.change_answer(&mut answer);
    }
    answer
}

fn change(filters: &Filters, matched: &PathMatch, received: &mut Received, request: &mut Request<Body>) {
    for change in &filters.request_headers {
        change.apply(request.headers_mut());
    }
    if let Some(rewrite) = &filters.rewrite {
        let path = rewrite.path(&received.path, matched);
        received.rewrite(rewrite.hostname.clone(), path);
    }
}

/// Says in the answer which rule has made it.
fn explain(answer: &mut Response<Body>, what: &str, rule: &RouteRule) {
    // The name is that of a resource: letters, digits and punctuation that need no escape.
    if let Ok(value) = HeaderValue::from_str(&format!("weft; details=\"{what} of route {}\"", rule.name)) {
        answer.headers_mut().insert(reply::PROXY_STATUS, value);
    }
}
