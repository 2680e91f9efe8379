//! How many requests without valid credentials each address may make: a token bucket for each of a bounded number of
//! addresses, and one for all others. Secrets have 256 bits, so this guards the log and the processor, not the secrets;
//! a valid token is therefore served however many bad ones came from the same address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Failures in a burst.
const BURST: u32 = 10;
/// Then one in this time.
const REFILL: Duration = Duration::from_secs(6);
/// Addresses that are told apart.
const ADDRESSES: usize = 1024;

/// How often room is looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Failures of late.
#[derive(Default)]
pub struct Failures(Mutex<Buckets>);

#[derive(Default)]
struct Buckets {
    each: HashMap<IpAddr, Bucket>,
    others: Bucket,
    /// When those that are full again were last dropped.
    swept: Option<Instant>,
}

/// When the bucket is full again: the time until then is what was taken out.
#[derive(Clone, Copy, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let full = self.0.filter(|full| *full > now).unwrap_or(now) + REFILL;
        let allowed = full.saturating_duration_since(now) <= REFILL * BURST;
        if allowed {
            self.0 = Some(full);
        }
        allowed
    }
}

impl Failures {
    /// Counts a failure; false when there were too many.
    pub fn take(&self, address: IpAddr, now: Instant) -> bool {
        let address = network(address);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let crowded = !buckets.each.contains_key(&address) && buckets.each.len() >= ADDRESSES;
        if crowded && buckets.swept.is_none_or(|swept| now >= swept + SWEEP) {
            buckets.swept = Some(now);
            buckets.each.retain(|_, bucket| bucket.0.is_some_and(|full| full > now));
        }
        let room = buckets.each.len() < ADDRESSES;
        match buckets.each.get_mut(&address) {
            Some(bucket) => bucket.take(now),
            None if room => buckets.each.entry(address).or_default().take(now),
            None => buckets.others.take(now),
        }
    }
}

/// Whoever has an IPv6 address has a /64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn taken(failures: &Failures, address: IpAddr, times: u32) -> u32 {
        (0..times).map(|_| u32::from(failures.take(address, Instant::now()))).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_through_and_then_one_in_six_seconds() {
        let (failures, address) = (Failures::default(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(taken(&failures, address, 50), BURST);
        tokio::time::advance(REFILL * 2).await;
        assert_eq!(taken(&failures, address, 50), 2);
        assert_eq!(taken(&failures, Ipv4Addr::new(10, 0, 0, 1).into(), 1), 1, "another address has its own");
    }

    #[tokio::test(start_paused = true)]
    async fn more_addresses_than_are_told_apart_take_no_more_memory() {
        let failures = Failures::default();
        let total: u32 =
            (0..100_000).map(|bits| u32::from(failures.take(Ipv4Addr::from_bits(bits).into(), Instant::now()))).sum();
        assert_eq!(failures.0.lock().unwrap().each.len(), ADDRESSES);
        assert_eq!(total, u32::try_from(ADDRESSES).unwrap() + BURST, "the rest shares one bucket");
        tokio::time::advance(REFILL * BURST).await;
        assert_eq!(taken(&failures, Ipv4Addr::new(99, 0, 0, 1).into(), 3), 3, "who is quiet again makes room");
    }

    #[test]
    fn the_addresses_of_one_network_share_a_bucket() {
        let [a, b, c] = ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    }
}
