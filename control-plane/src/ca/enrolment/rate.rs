//! How often somebody may ask: a token bucket for each of a bounded number of askers, and one for all others together.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Askers that are told apart.
const ASKERS: usize = 4096;
/// How often room is looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// The buckets of one kind of asker.
pub struct Rate<K> {
    burst: u32,
    refill: Duration,
    buckets: Mutex<Buckets<K>>,
}

struct Buckets<K> {
    /// When the bucket is full again: the time until then is what was taken out.
    each: HashMap<K, Instant>,
    others: Option<Instant>,
    swept: Option<Instant>,
}

impl<K: Eq + Hash> Rate<K> {
    /// A burst of so many, then one in each `refill`.
    #[must_use]
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, buckets: Mutex::new(Buckets { each: HashMap::new(), others: None, swept: None }) }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait; nothing was taken then.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let crowded = buckets.each.len() >= ASKERS && !buckets.each.contains_key(&key);
        if crowded && buckets.swept.is_none_or(|swept| now >= swept + SWEEP) {
            buckets.swept = Some(now);
            buckets.each.retain(|_, full| *full > now);
        }
        let known = buckets.each.contains_key(&key) || buckets.each.len() < ASKERS;
        let full = if known { buckets.each.get(&key).copied() } else { buckets.others };
        let after = self.after(full, now)?;
        match known {
            true => _ = buckets.each.insert(key, after),
            false => buckets.others = Some(after),
        }
        Ok(())
    }

    /// Whether one could be taken.
    ///
    /// # Errors
    /// How long to wait.
    pub fn peek<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Result<(), Duration>
    where
        K: Borrow<Q>,
    {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = buckets.each.get(key).copied().or_else(|| buckets.others.filter(|_| buckets.each.len() >= ASKERS));
        self.after(full, now).map(drop)
    }

    /// When the bucket is full again after one was taken.
    fn after(&self, full: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let after = full.filter(|full| *full > now).unwrap_or(now) + self.refill;
        let wait = after.saturating_duration_since(now).saturating_sub(self.refill * self.burst);
        if wait.is_zero() { Ok(after) } else { Err(wait) }
    }
}

/// Whoever has an IPv6 address has a /64 of them.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn taken(rate: &Rate<u32>, key: u32, times: u32, now: Instant) -> u32 {
        (0..times).map(|_| u32::from(rate.take(key, now).is_ok())).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_taken_then_one_at_a_time_and_the_wait_is_told() {
        let (rate, now) = (Rate::new(10, SECOND), Instant::now());
        assert_eq!(taken(&rate, 1, 50, now), 10);
        assert_eq!(rate.take(1, now), Err(SECOND));
        assert_eq!(rate.peek(&1, now), Err(SECOND));
        assert_eq!(taken(&rate, 2, 50, now), 10, "another has a bucket of its own");
        assert_eq!(taken(&rate, 1, 50, now + 3 * SECOND), 3);
        assert_eq!(rate.peek(&1, now + SECOND * 5), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn more_askers_than_are_told_apart_take_no_more_memory() {
        let (rate, now) = (Rate::new(2, SECOND), Instant::now());
        let all: u32 = (0..20_000).map(|key| taken(&rate, key, 1, now)).sum();
        assert_eq!(rate.buckets.lock().expect("sound").each.len(), ASKERS);
        assert_eq!(all, u32::try_from(ASKERS).expect("small") + 2, "the rest shares one bucket");
        assert_eq!(rate.peek(&20_000, now), Err(SECOND), "as the next one sees");
        assert_eq!(taken(&rate, 20_001, 3, now + 2 * SECOND), 2, "who is quiet again makes room");
    }

    #[test]
    fn the_addresses_of_one_network_share_a_bucket() {
        let [a, b, c] = ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"].map(|text| text.parse().expect("valid"));
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
    }
}
