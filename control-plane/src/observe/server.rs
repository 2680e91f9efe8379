//! The gRPC side of observing: one task for each stream that a sidecar has opened.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1::{
    ObserveDemand, ObserveReport,
    observation_server::{Observation, ObservationServer},
    observe_report::Report,
};
use weft_svid::PeerIdentity;

use super::{Observers, Stream, report::MESSAGE};
use crate::ca::{Presented, Revocations, service::PeerInfo};

/// The service.
pub struct Observing {
    observers: Observers,
    revocations: watch::Receiver<Arc<Revocations>>,
    stopping: watch::Receiver<bool>,
}

impl Observing {
    /// Ends all streams when `stopping` becomes true, those of a certificate when `revocations` cover it.
    #[must_use]
    pub const fn new(
        observers: Observers,
        revocations: watch::Receiver<Arc<Revocations>>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { observers, revocations, stopping }
    }

    /// As a gRPC service, with its limit on the size of reports.
    #[must_use]
    pub fn service(self) -> ObservationServer<Self> {
        ObservationServer::new(self).max_decoding_message_size(MESSAGE)
    }
}

#[tonic::async_trait]
impl Observation for Observing {
    type ObserveStream = ReceiverStream<Result<ObserveDemand, Status>>;

    async fn observe(
        &self,
        request: Request<Streaming<ObserveReport>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let Some(PeerInfo { identity: Some(peer), presented, address, .. }) = info else {
            return Err(Status::unauthenticated("reports need a client certificate: enrol first"));
        };
        let (stream, demands, ended) = self.observers.open(peer.id.clone(), address.to_string());
        let (revocations, stopping) = (self.revocations.clone(), self.stopping.clone());
        let serving = Serving { stream, peer, presented, revocations, stopping };
        tokio::spawn(serving.run(request.into_inner(), ended));
        Ok(Response::new(ReceiverStream::new(demands)))
    }
}

struct Serving {
    stream: Stream,
    peer: PeerIdentity,
    presented: Option<Arc<Presented>>,
    revocations: watch::Receiver<Arc<Revocations>>,
    stopping: watch::Receiver<bool>,
}

impl Serving {
    /// Until the sidecar leaves, goes beyond the bounds, is revoked, or has another stream on the same connection.
    async fn run(mut self, mut reports: Streaming<ObserveReport>, mut ended: oneshot::Receiver<()>) {
        loop {
            if self.presented.as_ref().is_some_and(|presented| self.is_revoked(presented)) {
                return;
            }
            let report = tokio::select! {
                report = reports.next() => report,
                _ = &mut ended => return,
                Ok(()) = self.revocations.changed() => continue,
                Ok(_) = self.stopping.wait_for(|stopping| *stopping) => return,
            };
            let Some(Ok(report)) = report else { return };
            let taken = match report.report {
                Some(Report::Statistics(part)) => self.stream.statistics(part),
                Some(Report::Tapped(tapped)) => self.stream.tapped(tapped),
                None => Ok(()),
            };
            if let Err(why) = taken {
                tracing::warn!(peer = %self.peer.id, why, "a sidecar's report is beyond the bounds; its stream ends");
                return;
            }
        }
    }

    fn is_revoked(&self, presented: &Arc<Presented>) -> bool {
        self.revocations.borrow().cover(&self.peer.id, presented, None)
    }
}
