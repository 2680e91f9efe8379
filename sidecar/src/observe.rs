//! What people look at while it happens: a stream to the control plane, on the connection of discovery, on which this
//! sidecar says what it has counted when it is asked, and shows requests as they end while a tap wants them. All of it is
//! on the control thread; a request sees one flag. Where nobody looks, nothing is made and nothing is sent.

mod statistics;
pub mod taps;

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Streaming, transport::Channel};
use weft_proto::v1::{
    ObserveDemand, ObserveReport, Tapped, TappedRequest, observation_client::ObservationClient, observe_demand::Demand,
    observe_report::Report,
};

use self::taps::Taps;
use crate::{discovery::Backoff, telemetry::Telemetry};

/// Reports that wait for the transport; what is tapped meanwhile waits in the queue of the taps.
const OUTBOX: usize = 8;
/// Requests of one report.
const BATCH: usize = 128;
/// Taps that are over are ended, and drops are told, so often.
const LOOK: Duration = Duration::from_secs(1);

/// The parts of observing.
pub struct Observe {
    /// The connection of discovery, while there is one.
    pub channels: watch::Receiver<Option<Channel>>,
    /// What is counted.
    pub telemetry: Telemetry,
    /// What people want to see.
    pub taps: Taps,
    /// What matched.
    pub tapped: mpsc::Receiver<(u64, TappedRequest)>,
    /// Waits between streams on one connection.
    pub backoff: Backoff,
}

/// Starts to observe: what is to be told of the connection of discovery, and what workers show requests to.
#[must_use]
pub fn start(telemetry: &Telemetry) -> (watch::Sender<Option<Channel>>, Taps) {
    let channels = watch::Sender::new(None);
    let (taps, tapped) = Taps::new();
    let (telemetry, backoff) = (telemetry.clone(), Backoff::default());
    let observe = Observe { channels: channels.subscribe(), telemetry, taps: taps.clone(), tapped, backoff };
    tokio::spawn(observe.run());
    (channels, taps)
}

impl Observe {
    /// Follows the connection of discovery for as long as there is one.
    pub async fn run(mut self) {
        loop {
            let channel = self.channels.wait_for(Option::is_some).await.ok().and_then(|channel| channel.clone());
            let Some(channel) = channel else { return };
            let code = self.follow(channel).await;
            // Nobody is there who could end them.
            self.taps.clear();
            let wait = match code {
                // An older control plane: the next connection may be to another one.
                Some(Code::Unimplemented) => Duration::MAX,
                _ => self.backoff.next(rand::random()),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.channels.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One stream, until it ends or the connection is another one: the code with which it was refused.
    async fn follow(&mut self, channel: Channel) -> Option<Code> {
        let (outbox, receiver) = mpsc::channel(OUTBOX);
        let mut client = ObservationClient::new(channel);
        let opened = tokio::select! {
            opened = client.observe(ReceiverStream::new(receiver)) => opened,
            _ = self.channels.changed() => return None,
        };
        let mut demands = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => {
                tracing::debug!(%status, "nobody can look at the traffic live");
                return Some(status.code());
            }
        };
        self.backoff.reset();
        self.serve(&outbox, &mut demands).await;
        None
    }

    async fn serve(&mut self, outbox: &mpsc::Sender<ObserveReport>, demands: &mut Streaming<ObserveDemand>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            let reports = tokio::select! {
                demand = demands.next() => match demand {
                    Some(Ok(demand)) => self.answer(demand),
                    Some(Err(_)) | None => return,
                },
                1.. = self.tapped.recv_many(&mut batch, BATCH) => self.show(&mut batch),
                _ = look.tick(), if self.taps.is_active() => {
                    self.taps.expire(Instant::now());
                    self.taps.news().into_iter().map(|(tap, dropped)| tapped(tap, Vec::new(), dropped)).collect()
                }
                _ = self.channels.changed() => return,
            };
            for report in reports {
                let report = ObserveReport { report: Some(report) };
                tokio::select! {
                    sent = outbox.send(report) => if sent.is_err() { return },
                    _ = self.channels.changed() => return,
                }
            }
        }
    }

    fn answer(&self, demand: ObserveDemand) -> Vec<Report> {
        match demand.demand {
            Some(Demand::Collect(collect)) => {
                statistics::reports(&self.telemetry.snapshot(), collect.number).map(Report::Statistics).collect()
            }
            Some(Demand::StartTap(start)) => {
                let id = start.id;
                // That it has begun is told at once; one that is not taken is never said to have.
                self.taps
                    .start(start, Instant::now())
                    .map(|dropped| tapped(id, Vec::new(), dropped))
                    .into_iter()
                    .collect()
            }
            Some(Demand::StopTap(stop)) => {
                self.taps.stop(stop.id);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// The batch by tap.
    fn show(&self, batch: &mut Vec<(u64, TappedRequest)>) -> Vec<Report> {
        let mut reports: Vec<(u64, Vec<TappedRequest>)> = Vec::new();
        for (tap, request) in batch.drain(..) {
            match reports.iter_mut().find(|(other, _)| *other == tap) {
                Some((_, requests)) => requests.push(request),
                None => reports.push((tap, vec![request])),
            }
        }
        // What is left of a tap that has ended is nobody's.
        let live = reports.into_iter().filter_map(|(tap, requests)| Some((tap, requests, self.taps.dropped(tap)?)));
        live.map(|(tap, requests, dropped)| tapped(tap, requests, dropped)).collect()
    }
}

const fn tapped(tap: u64, requests: Vec<TappedRequest>, dropped: u64) -> Report {
    Report::Tapped(Tapped { tap, requests, dropped })
}

#[cfg(test)]
mod tests;
