//! A sidecar's decisions over a simulated service: a virtual clock, a queue of events, and the real balancer, outlier
//! detection, breaker, budget and retry decision in the order in which the sidecar asks them. What must hold in every run
//! is checked at every step.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Method};
use weft_policy::{
    balance::{self, Balancer, Candidate, EndpointLoad, Nanos},
    breaker::{self, Breaker, Entry},
    circuit::{Outcome, State, Transition},
    limits::{Limits, Permit},
    model::Locality,
    outlier::{self, Ejections, Health},
    retry::{self, Attempt, Budget, Decision, Failure},
};

use crate::{
    answer::{Answer, answer},
    script::{Random, Script},
};

const SECOND: u64 = 1_000_000_000;
static NOWHERE: LazyLock<Locality> = LazyLock::new(Locality::default);

/// One step of a run: when, of what, what.
pub type Step = (u64, u64, &'static str);

/// What came of a run.
#[derive(Default)]
pub struct Report {
    pub trace: Vec<Step>,
    pub requests: u64,
    /// Requests that reached an app.
    pub deliveries: u64,
    /// By endpoint.
    pub delivered: Vec<u64>,
    /// To the first endpoint since its first fault began.
    pub sick: u64,
    /// By the second in which they arrived: requests and good answers, without those whose caller went away.
    pub seconds: Vec<(u64, u64)>,
    /// When the last ejected endpoint came back, if all did.
    pub all_in: Option<u64>,
    pub ejections: u64,
    /// The first of them: when, and `sick` then.
    pub first_out: Option<(u64, u64)>,
    pub opened: u64,
}

/// An endpoint as long as discovery has it.
struct Replica {
    index: usize,
    address: SocketAddr,
    weight: u32,
    load: EndpointLoad,
    health: Arc<Health>,
}

impl Candidate for Replica {
    fn load(&self) -> &EndpointLoad {
        &self.load
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn locality(&self) -> &Locality {
        &NOWHERE
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Arrive,
    Members,
    Retry(u64),
    TryEnds(u64),
}

struct Request {
    method: Method,
    arrived: u64,
    tries: u32,
    deliveries: u32,
    failed: Vec<Arc<Replica>>,
    permit: Option<Permit>,
}

/// A try on its way.
struct Try {
    request: u64,
    replica: Arc<Replica>,
    begun: u64,
    answer: Answer,
    probe: Option<outlier::Probe>,
    breaker_probe: Option<breaker::Probe>,
}

pub struct World<'a> {
    script: &'a Script,
    random: Random,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    members: Vec<Arc<Replica>>,
    balancer: Balancer,
    ejections: Arc<Ejections>,
    breaker: Arc<Breaker>,
    budget: Budget,
    limits: Limits,
    requests: BTreeMap<u64, Request>,
    tries: BTreeMap<u64, Try>,
    report: Report,
}

/// Runs a script to its end.
pub fn run(script: &Script, seed: u64) -> Report {
    let mut world = World {
        script,
        random: Random(seed),
        now: 0,
        queue: BinaryHeap::new(),
        scheduled: 0,
        members: Vec::new(),
        balancer: Balancer::new::<Arc<Replica>>(&script.balancing, &NOWHERE, &[], Nanos(0), None),
        ejections: Arc::default(),
        breaker: Arc::default(),
        budget: Budget::new(&script.budget),
        limits: Limits::default(),
        requests: BTreeMap::new(),
        tries: BTreeMap::new(),
        report: Report {
            delivered: vec![0; script.endpoints.len()],
            seconds: vec![(0, 0); usize::try_from(script.seconds).unwrap()],
            ..Report::default()
        },
    };
    world.run();
    world.report
}

impl World<'_> {
    fn run(&mut self) {
        self.members();
        let changes = self.script.endpoints.iter().flat_map(|plan| &plan.absent);
        let changes: Vec<_> = changes.flat_map(|time| [time.start, time.end]).collect();
        for second in changes {
            self.at(nanos(second), Event::Members);
        }
        self.at(0, Event::Arrive);
        while let Some(Reverse((time, _, event))) = self.queue.pop() {
            self.now = time;
            match event {
                Event::Arrive => self.arrive(),
                Event::Members => self.members(),
                Event::Retry(request) => self.attempt(request),
                Event::TryEnds(id) => self.try_ends(id),
            }
            self.check();
        }
        assert!(self.requests.is_empty() && self.tries.is_empty(), "every request got its answer");
        assert_eq!(self.limits.retries.current(), 0, "every retry gave its place back");
        assert!(self.members.iter().all(|replica| replica.load.in_flight() == 0));
        assert!(self.members.iter().all(|replica| replica.health.state() != State::HalfOpen), "a probe was lost");
        assert_ne!(self.breaker.state(), State::HalfOpen, "a probe was lost");
    }

    fn at(&mut self, time: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((time, self.scheduled, event)));
    }

    fn note(&mut self, subject: u64, word: &'static str) {
        self.report.trace.push((self.now, subject, word));
    }

    /// What must hold at any moment.
    fn check(&self) {
        let out = self.members.iter().filter(|replica| replica.health.is_out()).count();
        let out = u32::try_from(out).unwrap();
        let members = u32::try_from(self.members.len()).unwrap();
        assert_eq!(out, self.ejections.out(), "the count of ejected endpoints is exact");
        assert!(out <= outlier::may_be_out(&self.script.outlier, members), "{out} of {members} are out");
        assert!(out == 0 || out < members, "never all");
    }

    /// Discovery's news: who is there now. One that returns is new.
    fn members(&mut self) {
        let second = self.now as f64 / 1e9;
        let mut members = Vec::new();
        let mut came = false;
        for (index, plan) in self.script.endpoints.iter().enumerate().filter(|(_, plan)| !plan.is_absent(second)) {
            let known = self.members.iter().find(|replica| replica.index == index).cloned();
            came |= known.is_none();
            members.push(known.unwrap_or_else(|| {
                let health = Arc::new(Health::new(&self.ejections));
                let address = (Ipv4Addr::LOCALHOST, u16::try_from(index).unwrap()).into();
                Arc::new(Replica { index, address, weight: plan.weight, load: EndpointLoad::default(), health })
            }));
        }
        let (policy, now) = (&self.script.balancing, Nanos(self.now));
        self.balancer = Balancer::new(policy, &NOWHERE, &members, now, Some((&self.balancer, &self.members[..])));
        self.members = members;
        let healths = self.members.iter().map(|replica| &replica.health);
        let released = self.ejections.sync(&self.script.outlier, healths);
        for (index, transition) in released {
            let subject = self.members[index].index;
            self.changed(u64::try_from(subject).unwrap(), transition);
        }
        if came {
            self.breaker.endpoint_came(Nanos(self.now));
        }
    }

    fn changed(&mut self, subject: u64, transition: Transition) {
        self.note(subject, transition.cause.as_str());
        if transition.from == State::Closed {
            self.report.ejections += 1;
            self.report.first_out.get_or_insert((self.now, self.report.sick));
        }
        self.report.all_in = (self.ejections.out() == 0).then_some(self.now);
    }

    fn breaker_changed(&mut self, transition: Transition) {
        self.note(u64::MAX, transition.cause.as_str());
        self.report.opened += u64::from(transition.from == State::Closed);
    }

    fn arrive(&mut self) {
        let id = self.report.requests;
        self.report.requests += 1;
        let method = if self.random.happens(self.script.posts) { Method::POST } else { Method::GET };
        let request = Request { method, arrived: self.now, tries: 0, deliveries: 0, failed: Vec::new(), permit: None };
        self.requests.insert(id, request);
        self.budget.request(Nanos(self.now));
        self.attempt(id);
        // On average one in a mean gap, never two at the same moment.
        let next = self.now + 1 + self.random.below(2 * SECOND / u64::from(self.script.rate));
        if next < u64::from(self.script.seconds) * SECOND {
            self.at(next, Event::Arrive);
        }
    }

    fn attempt(&mut self, id: u64) {
        let now = Nanos(self.now);
        let breaker_probe = match self.breaker.enter(&self.script.breaker, now) {
            Entry::Pass => None,
            Entry::Probe(probe, transition) => {
                self.breaker_changed(transition);
                Some(probe)
            }
            Entry::Refused(until) => {
                assert!(until >= now);
                return self.finish(id, "refused");
            }
        };
        let Some((replica, probe)) = self.choose(id) else { return self.finish(id, "no_endpoint") };
        let request = self.requests.get_mut(&id).expect("a request under way");
        request.tries += 1;
        replica.load.begin();
        let (latency, answer) = answer(self.script, &mut self.random, self.now, replica.index);
        if !matches!(answer, Answer::Bad(Failure::Unsent, _)) {
            self.report.deliveries += 1;
            self.report.delivered[replica.index] += 1;
            let ill = self.script.endpoints[0].faults.first().is_some_and(|(time, _)| self.now >= nanos(time.start));
            self.report.sick += u64::from(replica.index == 0 && ill);
            request.deliveries += 1;
            assert!(request.method != Method::POST || request.deliveries == 1, "a POST was delivered twice");
            self.breaker.reached(&self.script.breaker);
        }
        self.note(id, "try");
        let begun = self.now;
        self.tries.insert(self.scheduled, Try { request: id, replica, begun, answer, probe, breaker_probe });
        self.at(self.now + u64::try_from(latency.as_nanos()).unwrap(), Event::TryEnds(self.scheduled));
    }

    /// The endpoint of the next try: one that is due for a probe, else the balancer's choice among those that are in and
    /// have not failed this request, else the first that failed it.
    fn choose(&mut self, id: u64) -> Option<(Arc<Replica>, Option<outlier::Probe>)> {
        let now = Nanos(self.now);
        let request = self.requests.get(&id)?;
        let repeatable = retry::idempotent(&request.method, &HeaderMap::new()) && request.tries == 0;
        let healths = self.members.iter().map(|replica| &replica.health);
        if let Some(taken) = self.ejections.take_probe(now, repeatable, healths) {
            let replica = Arc::clone(&self.members[taken.index]);
            let under_way = |other: &Try| other.probe.is_some() && Arc::ptr_eq(&other.replica, &replica);
            assert!(!self.tries.values().any(under_way), "two probes of one endpoint");
            self.changed(u64::try_from(replica.index).unwrap(), taken.transition);
            return Some((replica, Some(taken.probe)));
        }
        let failed = |replica: &Arc<Replica>| request.failed.iter().any(|other| Arc::ptr_eq(other, replica));
        let available = |replica: &Arc<Replica>| !replica.health.is_out() && !failed(replica);
        let random = &mut || self.random.next();
        let picked = self.balancer.pick(&self.members, balance::Request { hash: None, now, random }, available);
        picked.or(request.failed.first()).or(self.members.first()).map(|replica| (Arc::clone(replica), None))
    }

    fn try_ends(&mut self, id: u64) {
        let Try { request: id, replica, begun, answer, probe, breaker_probe } =
            self.tries.remove(&id).expect("a try under way");
        let now = Nanos(self.now);
        let outcome = match answer {
            Answer::Good => Outcome::Success,
            Answer::Bad(_, outcome) => outcome,
            Answer::CallerGone => Outcome::Neutral,
        };
        let latency = (outcome != Outcome::Neutral).then(|| Duration::from_nanos(self.now - begun));
        replica.load.end(now, latency, outcome != Outcome::Success);
        let (policy, random) = (&self.script.outlier, self.random.next());
        let transition = match probe {
            Some(probe) => probe.record(policy, outcome, now, random),
            None => replica.health.record(policy, outcome, Nanos(begun), now, random),
        };
        if let Some(transition) = transition {
            self.changed(u64::try_from(replica.index).unwrap(), transition);
        }
        let (policy, random) = (&self.script.breaker, self.random.next());
        let transition = match breaker_probe {
            Some(probe) => probe.record(policy, outcome, now, random),
            None => self.breaker.record(policy, outcome, Nanos(begun), now, random),
        };
        if let Some(transition) = transition {
            self.breaker_changed(transition);
        }
        match answer {
            Answer::Good => self.finish(id, "good"),
            Answer::CallerGone => self.finish(id, "caller_gone"),
            Answer::Bad(failure, _) => self.failed(id, replica, failure),
        }
    }

    fn failed(&mut self, id: u64, replica: Arc<Replica>, failure: Failure) {
        let random = self.random.next();
        let request = self.requests.get_mut(&id).expect("a request under way");
        // The place of the retry that has just ended.
        request.permit = None;
        request.failed.push(replica);
        let failed = |member: &Arc<Replica>| request.failed.iter().any(|other| Arc::ptr_eq(other, member));
        let elsewhere = self.members.iter().any(|member| !member.health.is_out() && !failed(member));
        let attempt = Attempt {
            method: &request.method,
            headers: &HeaderMap::new(),
            number: request.tries,
            failure,
            replayable: true,
            response: None,
            elsewhere,
            left: None,
        };
        let (now, clock) = (Nanos(self.now), SystemTime::UNIX_EPOCH);
        match retry::decide(&self.script.retry, &attempt, &self.budget, &self.limits, now, clock, random) {
            Decision::Retry { after, permit } => {
                request.permit = Some(permit);
                let wait = u64::try_from(after.as_nanos()).unwrap();
                self.note(id, "retry");
                self.at(self.now + wait, Event::Retry(id));
            }
            Decision::Stop(stop) => self.finish(id, stop.as_str()),
        }
    }

    fn finish(&mut self, id: u64, word: &'static str) {
        self.note(id, word);
        let request = self.requests.remove(&id).expect("a request under way");
        assert!(request.tries <= self.script.retry.attempts + 1);
        if word != "caller_gone" {
            let second = &mut self.report.seconds[usize::try_from(request.arrived / SECOND).unwrap()];
            second.0 += 1;
            second.1 += u64::from(word == "good");
        }
    }
}

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap()
}

impl Report {
    /// The share of good answers to requests that arrived in these seconds.
    pub fn success(&self, seconds: std::ops::Range<usize>) -> f64 {
        let sum = self.seconds[seconds].iter().fold((0, 0), |sum, second| (sum.0 + second.0, sum.1 + second.1));
        sum.1 as f64 / sum.0 as f64
    }
}
