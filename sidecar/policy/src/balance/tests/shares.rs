//! Shares by weight and by latency, idle and under load.

use super::*;

/// A simulation: every `gap` a request arrives, and its endpoint answers after the time that `latency` gives it. Shares of
/// the requests.
fn simulate(
    balancer: &Balancer,
    all: &[Endpoint],
    (gap, count): (u64, u32),
    latency: impl Fn(usize, u64) -> u64,
) -> Vec<f64> {
    let (mut random, mut noise) = (generator(11), generator(12));
    let mut counts = vec![0_u32; all.len()];
    let mut under_way = std::collections::BinaryHeap::new();
    for number in 0..u64::from(count) {
        let now = number * gap;
        while let Some(&std::cmp::Reverse((end, started, index))) = under_way.peek()
            && end <= now
        {
            under_way.pop();
            let endpoint: &Endpoint = &all[index];
            endpoint.load.end(Nanos(end), Some(Duration::from_nanos(end - started)), false);
        }
        let index = pick(balancer, all, (None, now), &mut random, |_| true).expect("all are available");
        counts[index] += 1;
        all[index].load.begin();
        under_way.push(std::cmp::Reverse((now + latency(index, noise()), now, index)));
    }
    counts.iter().map(|&picked| f64::from(picked) / f64::from(count)).collect()
}

/// Exponential with mean 1 ms, as many servers are, and at least a microsecond.
fn exponential(random: u64) -> u64 {
    let uniform = (f64::from(u32::try_from(random >> 32).expect("32 bits")) + 1.0) / 4_294_967_297.0;
    let nanos = Duration::from_secs_f64(-uniform.ln() / 1000.0).as_nanos();
    u64::try_from(nanos).expect("short").max(1000)
}

fn expected(weights: &[u32]) -> Vec<f64> {
    let total: u32 = weights.iter().sum();
    weights.iter().map(|&weight| f64::from(weight) / f64::from(total)).collect()
}

#[test]
fn shares_follow_weights_with_every_algorithm() {
    for algorithm in every_algorithm() {
        for weights in [vec![1, 1], vec![1, 3], vec![1, 1, 1, 1], vec![10, 20, 70], vec![4, 1, 1, 1, 1, 1, 1]] {
            let all = endpoints(&weights);
            let found = shares(&balancer(algorithm.clone(), &all), &all, 0, 40_000, |_| true);
            // A ring spreads as evenly as its points happen to lie.
            let tolerance = if matches!(algorithm, Algorithm::RingHash(_)) { 0.08 } else { 0.01 };
            assert_near(&found, &expected(&weights), tolerance, &format!("{algorithm:?} {weights:?}"));
        }
    }
}

#[test]
fn shares_follow_weights_under_load_with_equal_latencies() {
    for algorithm in [Algorithm::LeastLatency, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random] {
        for weights in [vec![1, 1], vec![1, 3], vec![1, 9], vec![10, 20, 70], vec![2, 1, 1, 1, 1]] {
            // A tenth of a request in flight, then two, then forty.
            for gap in [10_000_000, 500_000, 25_000] {
                for random in [false, true] {
                    let all = endpoints(&weights);
                    let balancer = balancer(algorithm.clone(), &all);
                    let latency = |_, noise| if random { exponential(noise) } else { 1_000_000 };
                    let found = simulate(&balancer, &all, (gap, 20_000), latency);
                    let what = format!("{algorithm:?}, a request each {gap} ns, random latency: {random}");
                    // Of two that are alike the one without a recent peak is taken, so they alternate in long waves.
                    let waves = random && weights == [1, 1] && algorithm == Algorithm::LeastLatency;
                    assert_near(&found, &expected(&weights), if waves { 0.12 } else { 0.045 }, &what);
                }
            }
        }
    }
}

#[test]
fn the_faster_endpoint_gets_more_than_its_weight() {
    for (weights, least) in [(vec![1, 1], 0.9), (vec![1, 3], 0.4), (vec![3, 1], 0.9)] {
        let all = endpoints(&weights);
        let balancer = balancer(Algorithm::LeastLatency, &all);
        let found =
            simulate(&balancer, &all, (500_000, 20_000), |index, _| if index == 0 { 100_000 } else { 5_000_000 });
        assert!(found[0] > least, "{weights:?}: {found:?}");
    }
}

#[test]
fn an_endpoint_with_a_full_queue_gets_less_by_least_request() {
    for weights in [vec![1, 1], vec![3, 3, 1], vec![1, 2]] {
        let all = endpoints(&weights);
        (0..50).for_each(|_| all[0].load.begin());
        let found = shares(&balancer(Algorithm::LeastRequest, &all), &all, 0, 1000, |_| true);
        assert!(found[0] < 0.75 * expected(&weights)[0], "{weights:?}: {found:?}");
    }
}

#[test]
fn an_endpoint_that_has_not_answered_yet_gets_a_request() {
    let all = endpoints(&[1, 1]);
    let found = simulate(&balancer(Algorithm::LeastLatency, &all), &all, (2_000_000, 10_000), |_, _| 1_000_000);
    assert!(found.iter().all(|&share| share > 0.1), "equally fast, so both: {found:?}");
}

#[test]
fn what_an_ejected_endpoint_leaves_is_shared_by_all_others() {
    for algorithm in every_algorithm() {
        let all = endpoints(&[1, 1, 1, 1]);
        let found = shares(&balancer(algorithm.clone(), &all), &all, 0, 20_000, |index| index != 1);
        let tolerance = if matches!(algorithm, Algorithm::RingHash(_)) { 0.08 } else { 0.02 };
        let third = 1.0 / 3.0;
        assert_near(&found, &[third, 0.0, third, third], tolerance, &format!("{algorithm:?}"));
    }
}

#[test]
fn of_two_equal_weights_a_small_difference_of_latency_decides() {
    let all = endpoints(&[1, 1]);
    let balancer = balancer(Algorithm::LeastLatency, &all);
    let found =
        simulate(&balancer, &all, (10_000_000, 5000), |index, _| if index == 0 { 1_000_000 } else { 1_600_000 });
    assert!(found[0] > 0.9, "{found:?}");
}
