//! What the tries of a request are made of: the request itself, and for another try a copy of its head and what has
//! passed of its body.

use http::{HeaderMap, Request};
use weft_policy::model::Protocol;

use crate::{
    http::{
        body::{Body, Replay},
        forward::Received,
    },
    snapshot::{Cluster, EndpointState},
    upstream::Key,
};

/// What the next try is made of.
pub struct Source {
    /// Not sent yet.
    pub request: Option<Request<Body>>,
    /// What a request that was sent is made of again.
    spare: Option<Box<Spare>>,
}

struct Spare {
    head: Request<Body>,
    /// `None`: there is no body.
    replay: Option<Replay>,
}

impl Source {
    /// A request, and when it may be sent `again` what it takes for that.
    pub fn new(request: Request<Body>, received: &Received, again: bool) -> Self {
        let mut source = Self { request: Some(request), spare: None };
        if again && received.upgrade.is_none() {
            source.keep(received);
        }
        source
    }

    fn keep(&mut self, received: &Received) {
        let Some(request) = &mut self.request else { return };
        let mut replay = None;
        if !received.is_bodyless() {
            replay = Replay::take(request.body_mut());
            let Some(replay) = &replay else { return };
            *request.body_mut() = replay.next_try();
        }
        self.spare = Some(Box::new(Spare { head: head(request), replay }));
    }

    /// Of the request.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.spare.as_ref().map(|spare| spare.head.headers()).or(self.request.as_ref().map(Request::headers))
    }

    /// Another try can be made of it.
    pub fn is_replayable(&self) -> bool {
        self.request.is_some()
            || self.spare.as_ref().is_some_and(|spare| spare.replay.as_ref().is_none_or(Replay::is_complete))
    }

    /// Another request beside the one that is on its way, if there is no body.
    pub fn copy(&self) -> Option<Request<Body>> {
        let spare = self.spare.as_ref().filter(|spare| spare.replay.is_none())?;
        Some(head(&spare.head))
    }

    /// Makes the request for the next try, unless the last one was not sent at all.
    pub fn refill(&mut self) {
        if let (None, Some(spare)) = (&self.request, &self.spare) {
            let mut request = head(&spare.head);
            if let Some(replay) = &spare.replay {
                *request.body_mut() = replay.next_try();
            }
            self.request = Some(request);
        }
    }
}

/// The connection to an endpoint of this cluster. In plaintext an undeclared protocol is the caller's.
pub fn key(endpoint: &EndpointState, cluster: &Cluster, received: &Received) -> Key {
    if let Some(mesh) = &endpoint.endpoint.mesh {
        return Key::mesh(mesh, &cluster.target);
    }
    let protocol = cluster.protocol;
    let http2 = protocol.is_http2()
        || !matches!(protocol, Protocol::Http | Protocol::Http1) && received.version == http::Version::HTTP_2;
    Key::Plain { address: endpoint.address, http2 }
}

/// A request with the same head and no body.
pub fn head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
