//! What happens to a simulated service: its endpoints, their faults and absences, its callers. Made by hand, or from a seed.

use std::{ops::Range, time::Duration};

use weft_policy::model::{Algorithm, BreakOn, CircuitBreaker, LoadBalancing, OutlierDetection, Retry, RetryBudget};

/// splitmix64: small, and the same everywhere.
pub struct Random(pub u64);

/// How an endpoint misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Connections are refused.
    Refuses,
    /// 503 at once.
    Unavailable,
    /// 503 for this share in parts per million.
    Flaky(u64),
    /// 500: the app's own error, which nobody repeats.
    ServerError,
    /// Answers, after this time.
    Slow(Duration),
    /// Never answers.
    Hangs,
    /// Ends the connection before the response.
    Resets,
}

/// One endpoint. Times are seconds since the start.
#[derive(Clone, Debug)]
pub struct Plan {
    pub weight: u32,
    pub latency: Duration,
    pub faults: Vec<(Range<f64>, Fault)>,
    pub absent: Vec<Range<f64>>,
}

/// A service and its callers.
#[derive(Clone, Debug)]
pub struct Script {
    pub endpoints: Vec<Plan>,
    /// Requests in a second.
    pub rate: u32,
    pub seconds: u32,
    /// Of them POST, in parts per million.
    pub posts: u64,
    /// Callers that go away before the answer, in parts per million.
    pub cancelled: u64,
    pub balancing: LoadBalancing,
    pub outlier: OutlierDetection,
    pub breaker: CircuitBreaker,
    pub retry: Retry,
    pub budget: RetryBudget,
}

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn happens(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    fn seconds(&mut self, range: Range<f64>) -> f64 {
        let part = self.below(1_000_000) as f64 / 1e6;
        range.start + (range.end - range.start) * part
    }
}

impl Plan {
    pub fn healthy() -> Self {
        Self { weight: 1, latency: Duration::from_millis(5), faults: Vec::new(), absent: Vec::new() }
    }

    pub fn with(fault: Fault, time: Range<f64>) -> Self {
        Self { faults: vec![(time, fault)], ..Self::healthy() }
    }

    pub fn fault(&self, second: f64) -> Option<Fault> {
        self.faults.iter().find(|(time, _)| time.contains(&second)).map(|&(_, fault)| fault)
    }

    pub fn is_absent(&self, second: f64) -> bool {
        self.absent.iter().any(|time| time.contains(&second))
    }
}

impl Script {
    pub fn new(endpoints: Vec<Plan>) -> Self {
        Self {
            endpoints,
            rate: 200,
            seconds: 15,
            posts: 0,
            cancelled: 0,
            balancing: LoadBalancing::default(),
            outlier: OutlierDetection::default(),
            breaker: CircuitBreaker::default(),
            retry: Retry::default(),
            budget: RetryBudget::default(),
        }
    }

    /// Anything at all.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x5EED);
        let random = &mut random;
        let bound = if random.happens(100_000) { 40 } else { 7 };
        let count = 1 + random.below(bound);
        let mut endpoints: Vec<_> = (0..count).map(|_| any_plan(random)).collect();
        if random.happens(400_000) {
            // A common cause.
            let (time, fault) = (random.seconds(0.0..6.0), any_fault(random));
            endpoints.iter_mut().for_each(|plan| plan.faults.insert(0, (time..time + 3.0, fault)));
        }
        let outlier = OutlierDetection {
            consecutive_failures: u32::try_from(random.below(8)).unwrap(),
            base_ejection: Duration::from_secs_f64(random.seconds(0.2..5.0)),
            window: Duration::from_secs_f64(random.seconds(1.0..10.0)),
            max_ejected_ppm: u32::try_from(random.below(1_000_001)).unwrap(),
            ..OutlierDetection::default()
        };
        let break_on = [BreakOn::ConnectFailures, BreakOn::Failures, BreakOn::Never];
        let breaker = CircuitBreaker {
            break_on: break_on[usize::try_from(random.below(3)).unwrap()],
            base_open: Duration::from_secs_f64(random.seconds(0.1..2.0)),
            ..CircuitBreaker::default()
        };
        let algorithms = [Algorithm::LeastLatency, Algorithm::RoundRobin, Algorithm::LeastRequest, Algorithm::Random];
        let algorithm = algorithms[usize::try_from(random.below(4)).unwrap()].clone();
        let slow_start = random.happens(300_000).then_some(Duration::from_secs(2));
        let retry = Retry { attempts: u32::try_from(random.below(4)).unwrap(), ..Retry::default() };
        Self {
            rate: 20 + u32::try_from(random.below(150)).unwrap(),
            seconds: 10,
            posts: random.below(600_000),
            cancelled: random.below(50_000),
            balancing: LoadBalancing { algorithm, slow_start, ..LoadBalancing::default() },
            outlier,
            breaker,
            retry,
            ..Self::new(endpoints)
        }
    }
}

fn any_fault(random: &mut Random) -> Fault {
    let all = [
        Fault::Refuses,
        Fault::Unavailable,
        Fault::Flaky(500_000),
        Fault::ServerError,
        Fault::Slow(Duration::from_millis(300)),
        Fault::Hangs,
        Fault::Resets,
    ];
    all[usize::try_from(random.below(7)).unwrap()]
}

fn any_plan(random: &mut Random) -> Plan {
    let mut plan = Plan::healthy();
    plan.weight = 1 + u32::try_from(random.below(4)).unwrap();
    plan.latency = Duration::from_micros(500 + random.below(20_000));
    for _ in 0..random.below(3) {
        let from = random.seconds(0.0..8.0);
        let fault = any_fault(random);
        plan.faults.push((from..from + random.seconds(0.1..6.0), fault));
    }
    if random.happens(200_000) {
        let from = random.seconds(0.0..8.0);
        plan.absent.push(from..from + random.seconds(0.1..3.0));
    }
    plan
}
