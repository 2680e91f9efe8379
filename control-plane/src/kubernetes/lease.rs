//! Which of several control planes writes statuses: the holder of a Lease (coordination.k8s.io/v1), which it renews, and
//! which another takes when it was not renewed for long enough. Clocks of machines are not compared: what counts is how
//! long a Lease was seen unchanged here.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, Error, api::PostParams};
use tokio::{sync::watch, time::Instant};

use super::told;

/// Name of the Lease.
pub const LEASE: &str = "weft-control-plane";

/// How a Lease is kept.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// It is taken from who has not renewed it for so long.
    pub duration: Duration,
    /// Who could not renew it for so long writes no more; with one more attempt it is less than `duration`.
    pub deadline: Duration,
    /// Between attempts.
    pub retry: Duration,
    /// One attempt.
    pub answer: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let [duration, deadline, retry, answer] = [15, 8, 2, 3].map(Duration::from_secs);
        Self { duration, deadline, retry, answer }
    }
}

/// A control plane that would lead.
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
    times: Times,
    observed: Option<Observed>,
}

/// What was seen of the Lease, and when for the first time.
struct Observed {
    spec: LeaseSpec,
    since: Instant,
}

/// What to do about the Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Make it.
    Create,
    /// Write it with us as the holder.
    Hold(Box<Lease>),
    /// Somebody else has it.
    Wait,
}

impl Candidate {
    /// One of this name, in the namespace of the client.
    #[must_use]
    pub fn new(client: Client, identity: String, times: Times) -> Self {
        let leases = Api::default_namespaced(client);
        Self { leases, identity, times, observed: None }
    }

    /// Tries for as long as somebody wants to know; then, or when `stopping`, gives the Lease back.
    pub async fn run(mut self, leading: watch::Sender<bool>, mut stopping: watch::Receiver<bool>) {
        let mut renewed: Option<Instant> = None;
        let mut failing = false;
        loop {
            let started = Instant::now();
            let attempt = tokio::time::timeout(self.times.answer, self.attempt()).await;
            match &attempt {
                Ok(Ok(true)) => renewed = Some(started),
                Ok(Ok(false)) => renewed = None,
                Ok(Err(error)) if !failing => {
                    tracing::warn!(why = told("get and update", "leases.coordination.k8s.io", error), "no lease");
                }
                Ok(Err(_)) => {}
                Err(_) => tracing::debug!("no answer about the lease in time"),
            }
            failing = !matches!(attempt, Ok(Ok(_)));
            renewed = renewed.filter(|at| at.elapsed() < self.times.deadline);
            let leads = renewed.is_some();
            let changed = leading.send_if_modified(|led| std::mem::replace(led, leads) != leads);
            if changed {
                tracing::info!(identity = self.identity, leads, "who writes statuses has changed");
            }
            tokio::select! {
                () = tokio::time::sleep(self.times.retry) => {}
                () = leading.closed() => break,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
        }
        if *leading.borrow() {
            leading.send_replace(false);
            self.give_back().await;
        }
    }

    /// Whether this one holds the Lease now.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let held = self.leases.get_opt(LEASE).await?;
        let written = match self.step(held, Instant::now()) {
            Step::Wait => return Ok(false),
            Step::Create => {
                let mut lease = Lease::default();
                lease.metadata.name = Some(LEASE.to_owned());
                lease.spec = Some(self.spec(None));
                self.leases.create(&PostParams::default(), &lease).await
            }
            // Its resourceVersion is what was read: of two who take it one is refused.
            Step::Hold(lease) => self.leases.replace(LEASE, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(lease) => {
                self.observed = Some(Observed { spec: lease.spec.unwrap_or_default(), since: Instant::now() });
                Ok(true)
            }
            Err(Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn step(&mut self, held: Option<Lease>, now: Instant) -> Step {
        let Some(mut lease) = held else { return Step::Create };
        let spec = lease.spec.take().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|seen| seen.spec != spec) {
            self.observed = Some(Observed { spec: spec.clone(), since: now });
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let since = self.observed.as_ref().map_or(now, |seen| seen.since);
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(self.times.duration, Duration::from_secs).max(self.times.duration);
        if !holder.is_empty() && holder != self.identity && now.saturating_duration_since(since) < duration {
            return Step::Wait;
        }
        lease.spec = Some(self.spec(Some(&spec)));
        Step::Hold(Box::new(lease))
    }

    /// The Lease as ours, after what it was.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.is_some_and(|before| before.holder_identity.as_deref() == Some(&self.identity));
        let acquired = before.filter(|_| ours).and_then(|before| before.acquire_time.clone());
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.times.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!ours && before.is_some()))),
            ..LeaseSpec::default()
        }
    }

    /// So that the next one need not wait.
    async fn give_back(&self) {
        let given = async {
            let Some(mut lease) = self.leases.get_opt(LEASE).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                self.leases.replace(LEASE, &PostParams::default(), &lease).await?;
            }
            Ok::<_, Error>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(self.times.answer, given).await {
            tracing::debug!(%error, "the lease was not given back; another takes it when it has run out");
        }
    }
}

/// A name that no other control plane has: of the pod or machine, and a random part, because a name may come back.
#[must_use]
pub fn identity() -> String {
    let node = rustix::system::uname();
    let machine = node.nodename().to_string_lossy();
    format!("{machine}_{:08x}", rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing::Cluster;

    const LIMIT: Duration = Duration::from_secs(60);

    fn client(cluster: &Cluster) -> Client {
        let mut config = kube::Config::new(cluster.url().parse().expect("a URL"));
        config.default_namespace = "weft-system".to_owned();
        config.default_retry = false;
        Client::try_from(config).expect("a client")
    }

    /// Starts a candidate: whether it leads, and what stops it.
    fn candidate(cluster: &Cluster, name: &str) -> (watch::Receiver<bool>, watch::Sender<bool>) {
        let [deadline, retry, answer] = [700, 50, 200].map(Duration::from_millis);
        let times = Times { duration: Duration::from_secs(1), deadline, retry, answer };
        let (leading, leads) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(Candidate::new(client(cluster), name.to_owned(), times).run(leading, stopping));
        (leads, stop)
    }

    async fn until(leads: &mut watch::Receiver<bool>, wanted: bool) {
        let told = tokio::time::timeout(LIMIT, leads.wait_for(|leads| *leads == wanted)).await;
        assert_eq!(*told.expect("in time").expect("alive"), wanted);
    }

    fn lease(holder: &str, renewed: i64) -> Lease {
        let time = MicroTime(Timestamp::from_second(renewed).expect("a time"));
        let holder_identity = Some(holder.to_owned());
        let spec =
            LeaseSpec { holder_identity, renew_time: Some(time), lease_transitions: Some(3), ..LeaseSpec::default() };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_only_after_it_was_seen_unchanged_for_its_whole_duration_by_our_own_clock() {
        let cluster = Cluster::start().await;
        let mut candidate = Candidate::new(client(&cluster), "me".to_owned(), Times::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(candidate.step(None, start), Step::Create);
        // Its time says nothing: the clock of the other may be wrong by years.
        assert_eq!(candidate.step(Some(lease("other", 0)), start), Step::Wait);
        assert_eq!(candidate.step(Some(lease("other", 0)), at(14)), Step::Wait);
        assert_eq!(candidate.step(Some(lease("other", 1)), at(15)), Step::Wait, "it was renewed");
        assert_eq!(candidate.step(Some(lease("other", 1)), at(29)), Step::Wait);
        let Step::Hold(taken) = candidate.step(Some(lease("other", 1)), at(30)) else { panic!("it has run out") };
        let spec = taken.spec.expect("a spec");
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("me"), Some(4)));
        assert!(matches!(candidate.step(Some(lease("", 1)), at(31)), Step::Hold(_)), "it was given back");
        let Step::Hold(renewed) = candidate.step(Some(lease("me", 1)), at(32)) else { panic!("it is ours") };
        assert_eq!(renewed.spec.and_then(|spec| spec.lease_transitions), Some(3));
    }

    #[tokio::test]
    async fn one_of_two_leads_and_the_other_takes_over_when_it_stops() {
        let cluster = Cluster::start().await;
        let (mut first, stop) = candidate(&cluster, "first");
        until(&mut first, true).await;
        let (mut second, _stop) = candidate(&cluster, "second");
        let asked = cluster.count("get leases.coordination.k8s.io");
        let many = async {
            while cluster.count("get leases.coordination.k8s.io") < asked + 20 {
                assert!(!*second.borrow(), "one leads");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, many).await.expect("in time");
        stop.send_replace(true);
        until(&mut second, true).await;
        assert!(!*first.borrow());
    }

    #[tokio::test]
    async fn who_cannot_renew_stops_writing_and_comes_back() {
        let cluster = Cluster::start().await;
        let (mut leads, _stop) = candidate(&cluster, "only");
        until(&mut leads, true).await;
        cluster.state().broken = true;
        until(&mut leads, false).await;
        cluster.state().broken = false;
        until(&mut leads, true).await;
    }
}
