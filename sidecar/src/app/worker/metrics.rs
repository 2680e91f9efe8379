//! Handles of a worker that are looked up for each connection: by port, service and caller.

use std::rc::Rc;

use ::metrics::Counter;
use weft_policy::{SpiffeId, model::Target};

use super::Worker;
use crate::{
    detect,
    telemetry::{Direction, Hop, HttpMetrics, TcpMetrics, UNKNOWN, http::ActiveRequests},
};

/// Handles for what one caller does at a port of the app, under the name of one service.
pub struct InboundMetrics {
    /// Requests.
    pub http: HttpMetrics,
    /// Requests in flight, of all callers.
    pub active: ActiveRequests,
    /// Opaque connections.
    pub tcp: TcpMetrics,
}

/// A request at a port of the app, until it is dropped.
pub struct InFlight(Rc<InboundMetrics>);

impl InFlight {
    /// One more request.
    #[must_use]
    pub fn begin(metrics: &Rc<InboundMetrics>) -> Self {
        metrics.active.begin();
        Self(Rc::clone(metrics))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.active.end();
    }
}

/// Port of the app, service port that was called, caller.
pub(super) type InboundKey = (u16, Option<Target>, Option<SpiffeId>);

/// One counter for each of [`detect::Protocol`].
pub(super) type Detections = [Counter; detect::Protocol::ALL.len()];

/// Handles that are looked up without a lock; more of them are looked up with one.
const HANDLES: usize = 256;

impl Worker {
    /// Handles for what `peer` does at a port of the app, which it called as `service`; without one the port of the app
    /// is all that is known. For each connection, not for each request.
    #[must_use]
    pub fn inbound(&self, port: u16, service: Option<&Target>, peer: Option<&SpiffeId>) -> Rc<InboundMetrics> {
        let mut cache = self.inbound.borrow_mut();
        let key = (port, service.cloned(), peer.cloned());
        if let Some(metrics) = cache.get(&key) {
            return Rc::clone(metrics);
        }
        let telemetry = &self.context.telemetry;
        let own = self.context.identity.borrow();
        let domain = own.as_ref().map(|own| own.id.trust_domain());
        let name = peer.map(|peer| telemetry.peer(peer, domain));
        let (service, service_port) = service.map_or((UNKNOWN, port), |target| (target.service.as_str(), target.port));
        let peer_name = name.as_deref().unwrap_or(UNKNOWN);
        let hop = Hop { direction: Direction::Inbound, service, port: service_port, peer: peer_name, route: "" };
        let mtls = peer.is_some();
        let (http, tcp, active) = (telemetry.http(&hop, mtls), telemetry.tcp(&hop, mtls), telemetry.active(&hop));
        let metrics = Rc::new(InboundMetrics { http, active, tcp });
        if cache.len() < HANDLES {
            cache.insert(key, Rc::clone(&metrics));
        }
        metrics
    }

    /// Counts a connection by what its first bytes were.
    pub fn count_detected(&self, direction: Direction, port: u16, protocol: detect::Protocol) {
        let mut cache = self.detected.borrow_mut();
        let counters = cache.entry((direction, port)).or_insert_with(|| {
            let (help, port) = ("Connections whose protocol was found from their first bytes", port.to_string());
            detect::Protocol::ALL.map(|protocol| {
                let labels = [("direction", direction.as_str()), ("port", &*port), ("protocol", protocol.as_str())];
                self.context.telemetry.counter("weft_detected_connections_total", help, &labels)
            })
        });
        counters[protocol as usize].increment(1);
    }

    /// Lets go of the handles of callers, so that those who are gone can be forgotten. Connections hold their own.
    pub fn release_handles(&self) {
        self.inbound.borrow_mut().clear();
    }
}
