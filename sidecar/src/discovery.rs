//! The sidecar's side of discovery: one stream to the control plane, its state kept while the control plane is away,
//! and the snapshot that the workers read.

mod backoff;
mod builder;
mod demand;
pub mod state;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Streaming, transport::Channel};
use weft_proto::{
    ResourceType,
    core::Node,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    v1::Registration,
};
use weft_svid::{Svid, TrustStore};

use self::state::State;
pub use self::{backoff::Backoff, builder::Builder};
use crate::{
    drain::Drain,
    identity::{self, renewal::Wishes},
    readiness::Readiness,
    snapshot::SnapshotSender,
    state::keep::Saver,
    telemetry::{Telemetry, gauges::NACKS},
};

/// Names that the app may bring up by dialling them.
const ON_DEMAND: usize = 1024;
/// Requests that wait for the transport.
const OUTBOX: usize = 64;
/// A session that the control plane closes earlier than this is no hand-over to another one.
const SHORT: Duration = Duration::from_secs(10);
/// A control plane that has not sent anything new within this time has nothing new.
const SETTLED: Duration = Duration::from_secs(2);
/// The control plane has this long to hear that the sidecar leaves.
pub const LEAVE: Duration = Duration::from_secs(1);

pub use demand::{Demand, Demands, Wanted, demand};

/// The parts of discovery.
pub struct Discovery {
    /// `host:port` of the control plane.
    pub xds: String,
    /// Namespace of the workload, for short host names.
    pub namespace: String,
    /// Current certificate, for the stream.
    pub svid: watch::Receiver<Option<Arc<Svid>>>,
    /// Roots, updated by trust bundles.
    pub trust: TrustStore,
    /// What to say of the workload.
    pub registration: watch::Receiver<Registration>,
    /// Services that the app dials.
    pub demand: Demands,
    /// Where snapshots go.
    pub publish: SnapshotSender,
    /// Told what is missing, and whether the control plane is there.
    pub readiness: Readiness,
    /// Which certificates the control plane wants renewed, for `identity`.
    pub wishes: watch::Sender<Wishes>,
    /// When the configuration that the state was restored from was last right; `None`: it is from the control plane, or
    /// there is none.
    pub from_disk: Option<SystemTime>,
    /// Keeps what is held; `None`: there is no state directory.
    pub saver: Option<Saver>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// What is held.
    pub state: State,
    /// Builds snapshots.
    pub builder: Builder,
    /// When to leave.
    pub drain: Drain,
    /// Waits between sessions.
    pub backoff: Backoff,
    /// The connection of the session, once the control plane has answered on it.
    pub channels: watch::Sender<Option<Channel>>,
}

/// Why a session with the control plane ended.
#[derive(Debug)]
enum Ended {
    /// The control plane closed it in good order: it wants the sidecar to connect again, perhaps elsewhere.
    Closed,
    /// It failed, or never began.
    Failed(anyhow::Error),
    /// This sidecar stops.
    Stopped,
}

impl Discovery {
    /// Connects, follows and reconnects until the sidecar stops. What was restored is served at once.
    pub async fn run(mut self) {
        let drain = self.drain.clone();
        if let Some(saved) = self.from_disk {
            self.telemetry.config_age().away(saved);
        }
        self.publish();
        loop {
            let start = Instant::now();
            let ended = match self.connect().await {
                Ok(channel) => self.follow(channel).await,
                Err(error) => Ended::Failed(error),
            };
            self.channels.send_if_modified(|channel| channel.take().is_some());
            if matches!(ended, Ended::Stopped) {
                // What has changed since the last time is written before the process ends.
                self.save();
            }
            let Some(wait) = self.wait_after(&ended, start.elapsed(), rand::random()) else { return };
            self.save();
            // Where nothing was ever right there is no age either.
            if self.state.missing().is_empty() {
                self.telemetry.config_age().away(SystemTime::now());
            }
            if let Ended::Failed(error) = &ended {
                self.readiness.away(&format!("{error:#}"));
                tracing::warn!(error = format!("{error:#}"), ?wait, "discovery stream ended; what is held stays");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = drain.stopped() => return,
            }
        }
    }

    /// How long to wait before the next session; `None`: there is none.
    fn wait_after(&mut self, ended: &Ended, lived: Duration, random: f64) -> Option<Duration> {
        match ended {
            Ended::Stopped => None,
            // A control plane that ends each session at once must not be called in a loop.
            Ended::Closed if lived >= SHORT => Some(Duration::ZERO),
            Ended::Closed | Ended::Failed(_) => Some(self.backoff.next(random)),
        }
    }

    async fn connect(&mut self) -> anyhow::Result<Channel> {
        let svid = self.svid.wait_for(Option::is_some).await.ok().and_then(|svid| svid.clone());
        let svid = svid.context("no certificate")?;
        Ok(identity::channel(&self.xds, Some(&svid), &self.trust, svid.identity.id.trust_domain()).await?)
    }

    /// One session: the whole subscription first, then responses, new wishes and news of the workload as they come.
    async fn follow(&mut self, channel: Channel) -> Ended {
        let drain = self.drain.clone();
        // Most requests are tiny, and an answer to each response is all that the control plane waits for.
        let (sender, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(OUTBOX);
        for request in self.opening() {
            let _ = sender.try_send(request);
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(64 * 1024 * 1024);
        let opened = tokio::select! {
            opened = client.delta_aggregated_resources(ReceiverStream::new(receiver)) => opened,
            () = drain.stopped() => return Ended::Stopped,
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return Ended::Failed(anyhow::anyhow!("{}", status.message())),
        };
        self.readiness.reached();
        let _reached = self.demand.reached();
        if self.from_disk.is_none() {
            self.telemetry.config_age().current();
        }
        let settled = tokio::time::sleep(SETTLED);
        tokio::pin!(settled);
        // Responses are read also while requests wait: two peers that both only write would wait for ever.
        let mut outbox = VecDeque::new();
        let mut wanted = Vec::new();
        loop {
            tokio::select! {
                slot = sender.reserve(), if !outbox.is_empty() => match (slot, outbox.pop_front()) {
                    (Ok(slot), Some(request)) => slot.send(request),
                    _ => return Ended::Failed(anyhow::anyhow!("the control plane takes no more requests")),
                },
                response = stream.next() => match response {
                    Some(Ok(response)) => {
                        self.backoff.reset();
                        self.channels.send_if_modified(|current| {
                            let first = current.is_none();
                            current.get_or_insert_with(|| channel.clone());
                            first
                        });
                        self.confirmed();
                        outbox.extend(self.on_response(response));
                    }
                    Some(Err(status)) => return Ended::Failed(anyhow::anyhow!("{}", status.message())),
                    None => return Ended::Closed,
                },
                1.. = self.demand.recv_many(&mut wanted, OUTBOX), if outbox.len() < OUTBOX => {
                    outbox.extend(self.wanted(wanted.drain(..)));
                }
                () = &mut settled, if self.from_disk.is_some() => self.confirmed(),
                () = save_due(self.saver.as_ref()), if self.from_disk.is_none() => {
                    self.changed();
                    self.save();
                }
                Ok(()) = self.registration.changed() => outbox.push_back(self.news()),
                () = drain.stopped() => break,
            }
        }
        outbox.push_back(self.news());
        let _ = tokio::time::timeout(LEAVE, leave(sender, outbox, stream)).await;
        Ended::Stopped
    }

    /// The first requests of a session.
    fn opening(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = self.state.open();
        if let Some(first) = requests.first_mut() {
            let id = self.state.workload().to_owned();
            first.node = Some(Node { id, user_agent_name: "weft-sidecar".into(), ..Node::default() });
            first.registration = Some(self.registration.borrow_and_update().clone());
        }
        requests
    }

    /// Subscribes to what the app dials. When that is as much as there may be, what is not there makes room: it is asked
    /// for again when the app dials it again.
    fn wanted(&mut self, wanted: impl Iterator<Item = Wanted>) -> Vec<DeltaDiscoveryRequest> {
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        for wanted in wanted {
            match wanted {
                Wanted::Service(name) => names.push(name),
                Wanted::Address(address) => addresses.push(address),
            }
        }
        let mut requests = Vec::new();
        if self.state.subscribed() + names.len() > ON_DEMAND || self.state.addresses() + addresses.len() > ON_DEMAND {
            requests.extend(self.state.forget_absent());
        }
        let room = ON_DEMAND.saturating_sub(self.state.subscribed());
        requests.extend(self.state.want(names.into_iter().take(room)));
        let room = ON_DEMAND.saturating_sub(self.state.addresses());
        requests.extend(self.state.want_addresses(addresses.into_iter().take(room)));
        self.changed();
        requests
    }

    /// What the workload is now.
    fn news(&mut self) -> DeltaDiscoveryRequest {
        let registration = Some(self.registration.borrow_and_update().clone());
        let type_url = ResourceType::WorkloadConfig.type_url().into();
        DeltaDiscoveryRequest { type_url, registration, ..DeltaDiscoveryRequest::default() }
    }

    /// Applies and publishes before the answer: an ACK means that requests see it. What new versions refer to is asked
    /// for first, so that the control plane does not remove anything before it has sent that (rule 7).
    fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        if let Ok(revision) = response.system_version_info.parse::<u32>() {
            let help = "Revision of the configuration that came last, as the control plane counts them";
            self.telemetry.gauge("weft_config_revision", help, &[]).set(f64::from(revision));
        }
        let answer = self.state.apply(response);
        self.changed();
        self.count(&answer);
        let mut requests = self.state.follow_references();
        requests.push(answer);
        self.publish();
        requests
    }

    fn count(&self, answer: &DeltaDiscoveryRequest) {
        let kind = ResourceType::from_type_url(&answer.type_url).map_or("other", ResourceType::name);
        let result = if answer.error_detail.is_some() { "rejected" } else { "accepted" };
        let labels = [("type", kind), ("result", result)];
        self.telemetry.counter("weft_config_updates_total", "Configuration updates", &labels).increment(1);
        if let Some(error) = &answer.error_detail {
            self.telemetry.counter(NACKS.0, NACKS.1, &[("type", kind)]).increment(1);
            tracing::warn!(kind, error = error.message, "configuration refused; what is held stays");
        }
    }

    fn publish(&mut self) {
        for (domain, bundle) in self.state.take_trust_changes() {
            match bundle {
                None => {
                    self.trust.withdraw(&domain);
                    self.wishes.send_if_modified(|wishes| wishes.remove(&domain).is_some());
                }
                Some(bundle) => {
                    let wish = bundle.renew_issued_before;
                    self.wishes.send_if_modified(|wishes| wishes.insert(domain.clone(), wish) != Some(wish));
                    if let Err(error) = self.trust.set(&domain, &bundle.roots, &bundle.revocations) {
                        tracing::warn!(domain, %error, "trust bundle refused");
                    }
                }
            }
        }
        let snapshot = self.builder.build(&mut self.state, &self.namespace);
        self.publish.send_replace(Arc::new(snapshot));
        self.readiness.configuration(self.state.missing());
        self.show_source();
    }

    /// The control plane is there: what it does not send now is as it should be.
    fn confirmed(&mut self) {
        self.telemetry.config_age().current();
        if self.from_disk.take().is_some() {
            tracing::info!("the control plane is back: the configuration is its own again");
            self.show_source();
        }
    }

    fn show_source(&self) {
        self.readiness.from_disk(self.from_disk);
        let help = "1 while the configuration is the one from the state directory";
        let value = if self.from_disk.is_some() { 1.0 } else { 0.0 };
        self.telemetry.gauge("weft_config_from_disk", help, &[]).set(value);
    }

    fn changed(&mut self) {
        if let Some(saver) = &mut self.saver {
            saver.changed();
        }
    }

    /// Has what is held kept, if it has changed since the last time and came from the control plane.
    fn save(&mut self) {
        let svid = self.svid.borrow().clone();
        if let (Some(saver), Some(svid)) = (&mut self.saver, svid)
            && saver.is_dirty()
        {
            saver.offer(self.state.stored(&svid.identity.id), SystemTime::now());
        }
    }
}

/// Returns when the state is to be saved; never without a state directory.
async fn save_due(saver: Option<&Saver>) {
    match saver {
        Some(saver) => saver.due().await,
        None => std::future::pending().await,
    }
}

/// Sends what is still to be said, the draining registration last, closes our side and waits until the control plane has
/// taken it.
async fn leave(
    sender: mpsc::Sender<DeltaDiscoveryRequest>,
    outbox: VecDeque<DeltaDiscoveryRequest>,
    mut stream: Streaming<DeltaDiscoveryResponse>,
) {
    let write = async {
        for request in outbox {
            if sender.send(request).await.is_err() {
                return;
            }
        }
        drop(sender);
    };
    let read = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::join!(write, read);
}

#[cfg(test)]
mod tests;
