//! Renewals under a clock that the test owns, with a signer that counts.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::identity::testing::Authority;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);
const ID: &str = "spiffe://weft.local/ns/shop/sa/web";

/// The world around a renewal: its clock, and the authority with a clock of its own.
struct World {
    authority: Authority,
    start: Instant,
    began: SystemTime,
    /// What this machine's wall clock is ahead of the authority's, in seconds around [`YEARS`] * 2.
    skew: AtomicU64,
    life: Duration,
    token: Mutex<bool>,
    /// What the signer answers, in place of a certificate.
    fails: Mutex<Option<FailureReason>>,
    asked: Mutex<Vec<&'static str>>,
}

const NO_SKEW: u64 = 2 * YEARS.as_secs();

impl World {
    fn new(life: Duration) -> Arc<Self> {
        // Real time: rustls' judgement of our own chain has no other clock.
        Arc::new(Self {
            authority: Authority::default(),
            start: Instant::now(),
            began: SystemTime::now(),
            skew: AtomicU64::new(NO_SKEW),
            life,
            token: Mutex::new(true),
            fails: Mutex::new(None),
            asked: Mutex::default(),
        })
    }

    /// The true time.
    fn truth(&self) -> SystemTime {
        self.began + self.start.elapsed()
    }

    fn wall(&self) -> SystemTime {
        self.truth() + Duration::from_secs(self.skew.load(Ordering::Relaxed)) - 2 * YEARS
    }

    fn ahead(&self, time: Duration) {
        self.skew.store(NO_SKEW + time.as_secs(), Ordering::Relaxed);
    }

    fn behind(&self, time: Duration) {
        self.skew.store(NO_SKEW - time.as_secs(), Ordering::Relaxed);
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().expect("whole").clone()
    }

    fn fail(&self, reason: impl Into<Option<FailureReason>>) {
        *self.fails.lock().expect("whole") = reason.into();
    }
}

impl Signer for World {
    async fn sign(&self, proof: Proof) -> Result<Signed, Failure> {
        self.asked.lock().expect("whole").push(match &proof {
            Proof::Token => "token",
            Proof::Certificate(_) => "certificate",
        });
        let fails = *self.fails.lock().expect("whole");
        if let Some(reason) = fails {
            return Err(Failure::new(reason, anyhow::anyhow!("as the test wants it")));
        }
        if matches!(proof, Proof::Token) && !self.has_token() {
            return Err(Failure::new(FailureReason::NoToken, anyhow::anyhow!("no token")));
        }
        let now = self.truth();
        let svid = self.authority.sign(ID, now - Duration::from_secs(300), now + self.life);
        Ok(Signed { svid, roots: vec![self.authority.root()] })
    }

    fn has_token(&self) -> bool {
        *self.token.lock().expect("whole")
    }
}

/// A renewal that runs, and what comes out of it.
struct Running {
    world: Arc<World>,
    trust: TrustStore,
    wishes: watch::Sender<Wishes>,
    published: watch::Receiver<Option<Arc<MeshIdentity>>>,
    readiness: Readiness,
    telemetry: Telemetry,
    registration: watch::Receiver<Registration>,
}

fn run(world: &Arc<World>) -> Running {
    let trust = TrustStore::default();
    trust.set_roots("weft.local", &[world.authority.root()]).expect("a root");
    let (publish, wishes) = (watch::Sender::new(None), watch::Sender::default());
    let (readiness, telemetry, clock) = (Readiness::default(), Telemetry::default(), Arc::clone(world));
    let registration = watch::Sender::new(Registration::default());
    let running = Running {
        world: Arc::clone(world),
        trust: trust.clone(),
        published: publish.subscribe(),
        readiness: readiness.clone(),
        telemetry: telemetry.clone(),
        registration: registration.subscribe(),
        wishes: wishes.clone(),
    };
    let renewal = Renewal {
        signer: Arc::clone(world),
        trust,
        clock: WallClock::new(move || clock.wall()),
        wishes: wishes.subscribe(),
        publish,
        discovery: watch::Sender::new(None),
        registration,
        readiness,
        telemetry,
        store: None,
    };
    tokio::spawn(renewal.run(None));
    running
}

impl Running {
    /// Lets this much time pass; never may a certificate be offered that has ended by this machine's clock.
    async fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::sleep((end - Instant::now()).min(Duration::from_millis(500))).await;
            let published = self.published.borrow().clone();
            if let Some(identity) = published {
                assert!(identity.not_after + CHECK > self.world.wall(), "one that has ended is offered");
            }
        }
    }

    fn offers(&self) -> bool {
        self.published.borrow().is_some()
    }

    fn generation(&self) -> u64 {
        self.published.borrow().as_ref().map_or(0, |identity| identity.generation)
    }

    fn described(&self) -> String {
        self.readiness.subscribe().borrow().describe(SystemTime::now())
    }
}

/// After a jump the next look at the clock comes within a second.
async fn look() {
    tokio::time::sleep(CHECK + Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_day_long_certificate_is_renewed_about_twice_a_day_and_never_ends() {
    let world = World::new(DAY);
    let running = run(&world);
    running.pass(Duration::from_secs(1)).await;
    assert_eq!(world.asked(), ["token"]);
    running.pass(DAY.mul_f64(0.49)).await;
    assert_eq!(world.asked().len(), 1, "not before half of its life");
    running.pass(DAY.mul_f64(0.22)).await;
    assert_eq!(world.asked(), ["token", "certificate"], "before 71 % of it");
    assert_eq!(running.generation(), 2);
    let end = running.registration.borrow().certificate_end_ms;
    let now = running.published.borrow().as_ref().expect("offered").not_after;
    assert_eq!(u128::from(end), now.duration_since(UNIX_EPOCH).expect("later").as_millis());
}

#[tokio::test(start_paused = true)]
async fn ten_second_certificates_are_renewed_every_five_to_seven_seconds() {
    let world = World::new(Duration::from_secs(10));
    let running = run(&world);
    running.pass(Duration::from_secs(60)).await;
    let count = world.asked().len();
    assert!((8..=13).contains(&count), "{count}");
    assert!(running.offers());
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_to_its_end_while_renewals_fail_and_the_first_success_serves_again() {
    let world = World::new(HOUR);
    let running = run(&world);
    running.pass(Duration::from_secs(1)).await;
    world.fail(FailureReason::Unreachable);
    running.pass(HOUR - Duration::from_secs(3)).await;
    assert!(running.offers(), "it has two seconds left");
    let tries = world.asked().len();
    assert!(tries > 50 && tries < 1000, "every ten seconds at most, and more often near the end: {tries}");
    running.pass(Duration::from_secs(4)).await;
    assert!(!running.offers());
    assert!(running.described().starts_with("waiting for: certificate (as the test wants it; is it running"));
    world.fail(None);
    running.pass(Duration::from_secs(12)).await;
    assert!(running.offers());
    assert_eq!(world.asked().last(), Some(&"token"), "an ended certificate proves nothing");
    let text = running.telemetry.render();
    assert!(text.contains("weft_cert_renewal_failures_total{reason=\"unreachable\"}"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_by_an_hour_either_way_costs_at_most_one_renewal() {
    for jump in [World::ahead, World::behind] {
        let world = World::new(DAY);
        let running = run(&world);
        running.pass(Duration::from_secs(5)).await;
        jump(&world, HOUR);
        running.pass(HOUR).await;
        world.ahead(Duration::ZERO);
        running.pass(HOUR).await;
        assert_eq!(world.asked(), ["token"]);
        assert!(running.offers());
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_wakes_up_renews_at_once_what_is_due_and_does_not_offer_what_has_ended() {
    let world = World::new(DAY);
    let running = run(&world);
    running.pass(Duration::from_secs(5)).await;
    // The lid was closed for 17 hours: the wall clocks of both machines went on, the monotonic one stood still.
    world.ahead(17 * HOUR);
    look().await;
    assert_eq!(world.asked().len(), 2);
    assert!(running.offers());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ten_years_ahead_offers_nothing_and_asks_seldom_until_it_is_right() {
    let world = World::new(DAY);
    let running = run(&world);
    running.pass(Duration::from_secs(5)).await;
    world.ahead(YEARS);
    look().await;
    assert!(!running.offers(), "it has ended by this clock");
    let before = world.asked().len();
    running.pass(HOUR).await;
    let asked = world.asked().len() - before;
    assert!(asked <= 13, "every five minutes at most: {asked}");
    assert!(running.described().contains("is this machine's clock right?"), "{}", running.described());
    world.ahead(Duration::ZERO);
    look().await;
    assert!(running.offers(), "the last one is good again");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ten_years_behind_neither_loops_nor_outlives_the_certificate() {
    let world = World::new(HOUR);
    let running = run(&world);
    running.pass(Duration::from_secs(5)).await;
    world.behind(YEARS);
    running.pass(Duration::from_secs(1500)).await;
    assert_eq!(world.asked(), ["token"], "not due by either clock");
    world.fail(FailureReason::Untrusted);
    *world.token.lock().expect("whole") = false;
    running.pass(HOUR).await;
    assert!(!running.offers(), "its hour is over by the clock that goes on");
    world.ahead(Duration::ZERO);
    world.fail(None);
    *world.token.lock().expect("whole") = true;
    running.pass(Duration::from_secs(15)).await;
    assert!(running.offers());
    let count = world.asked().len();
    running.pass(Duration::from_secs(600)).await;
    assert_eq!(world.asked().len(), count);
}

#[tokio::test(start_paused = true)]
async fn a_wish_of_the_control_plane_is_met_once_within_a_minute() {
    let world = World::new(DAY);
    let running = run(&world);
    running.pass(Duration::from_secs(5)).await;
    // Later than any notBefore: also the new certificate's.
    let wish = (world.truth() + HOUR).duration_since(UNIX_EPOCH).expect("later").as_millis();
    let wish = u64::try_from(wish).expect("small");
    running.wishes.send_replace([("other.local".into(), wish)].into());
    running.pass(Duration::from_secs(70)).await;
    assert_eq!(world.asked().len(), 1, "another trust domain's is none of ours");
    running.wishes.send_replace([("weft.local".into(), wish)].into());
    running.pass(Duration::from_secs(62)).await;
    assert_eq!(world.asked(), ["token", "certificate"]);
    running.pass(HOUR).await;
    assert_eq!(world.asked().len(), 2, "once for each wish");
    running.wishes.send_replace([("weft.local".into(), wish + 1)].into());
    running.pass(Duration::from_secs(62)).await;
    assert_eq!(world.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_whose_issuer_is_not_trusted_any_more_is_renewed_soon_and_not_in_a_loop() {
    let world = World::new(DAY);
    let running = run(&world);
    running.pass(Duration::from_secs(5)).await;
    running.trust.set_roots("weft.local", &[Authority::default().root()]).expect("a root");
    running.pass(Duration::from_secs(62)).await;
    assert_eq!(world.asked().get(1), Some(&"certificate"));
    // The signer goes on with the old issuer.
    running.pass(HOUR).await;
    let count = world.asked().len();
    assert!(count < 80, "once a minute at most: {count}");
    running.trust.set_roots("weft.local", &[world.authority.root()]).expect("a root");
    running.pass(Duration::from_secs(62)).await;
    let count = world.asked().len();
    running.pass(HOUR).await;
    assert_eq!(world.asked().len(), count);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_certificate_is_withdrawn_and_replaced_with_the_token_or_not_at_all() {
    for token in [true, false] {
        let world = World::new(DAY);
        let running = run(&world);
        running.pass(Duration::from_secs(5)).await;
        *world.token.lock().expect("whole") = token;
        // What began until now; the next one begins later by the second in which it is asked for.
        let id = weft_policy::SpiffeId::parse(ID).expect("valid");
        let began = running.world.truth() - Duration::from_secs(300);
        let before = u64::try_from(began.duration_since(UNIX_EPOCH).expect("later").as_millis()).expect("small");
        running.pass(Duration::from_secs(5)).await;
        let revoked = [weft_policy::model::Revocation::Identity { id, issued_before: before }];
        running.trust.set("weft.local", &[world.authority.root()], &revoked).expect("a root");
        look().await;
        assert_eq!(world.asked().last(), Some(&"token"), "a revoked certificate proves nothing");
        assert_eq!(running.offers(), token);
        let text = running.described();
        assert_eq!(text.contains("give --token FILE"), !token, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_the_control_plane_does_not_take_is_replaced_with_a_token_and_kept_meanwhile() {
    let world = World::new(DAY);
    let running = run(&world);
    running.pass(Duration::from_secs(5)).await;
    world.fail(FailureReason::Rejected);
    running.pass(DAY.mul_f64(0.72)).await;
    assert!(running.offers(), "it is not over");
    let asked = world.asked();
    assert!(asked[1..].contains(&"token") && asked[1..].contains(&"certificate"), "each in turn");
    world.fail(FailureReason::Revoked);
    running.pass(Duration::from_secs(30)).await;
    assert!(!running.offers(), "the control plane says that it is revoked");
}

#[test]
fn retries_back_off_and_come_closer_as_the_certificate_ends() {
    let hour = Duration::from_secs(3600);
    assert_eq!(retry_after(1, hour, 1.0), Duration::from_millis(200));
    assert_eq!(retry_after(40, hour, 1.0), Duration::from_secs(10));
    assert_eq!(retry_after(40, hour, 0.0), Duration::from_secs(5));
    // Of a certificate with two seconds left: four tries at least, and never a storm.
    assert_eq!(retry_after(40, Duration::from_secs(2), 1.0), Duration::from_millis(500));
    assert_eq!(retry_after(40, Duration::ZERO, 1.0), Duration::from_millis(100));
}
