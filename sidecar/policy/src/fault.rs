//! Failures on purpose: which of them a request meets. The sidecar waits, aborts and slows down by the answer.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use crate::model::{Abort, Fault};

/// The whole, in parts per million.
const MILLION: u32 = 1_000_000;

/// What happens to one request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Injection<'f> {
    /// Before the request is sent on, and before an abort: the longest of those that apply.
    pub delay: Option<Duration>,
    /// Instead of the answer: the first that applies.
    pub abort: Option<Abort>,
    /// Of the response body: the least of those that apply.
    pub bytes_per_second: Option<u64>,
    /// `namespace/name` of each fault that does something here, for logs and metrics. Allocates only when there is one.
    pub names: Vec<&'f str>,
}

/// What `faults` do to a request with these headers. Delay, abort and bandwidth of a fault are drawn one by one, each by its
/// own share; an expired fault does nothing.
pub fn inject<'f>(
    faults: &'f [Fault],
    headers: &HeaderMap,
    now: SystemTime,
    mut random: impl FnMut() -> u64,
) -> Injection<'f> {
    let mut injection = Injection::default();
    for fault in faults {
        if fault.expires.is_some_and(|expires| expires <= now) || !fault.headers.iter().all(|key| key.matches(headers))
        {
            continue;
        }
        let delay = fault.delay.and_then(|(delay, share)| hit(share, &mut random).then_some(delay));
        let abort = fault.abort.and_then(|(abort, share)| hit(share, &mut random).then_some(abort));
        let bandwidth = fault.bandwidth.and_then(|(rate, share)| hit(share, &mut random).then_some(rate));
        if delay.is_some() || abort.is_some() || bandwidth.is_some() {
            injection.names.push(&fault.name);
        }
        injection.delay = injection.delay.max(delay);
        injection.abort = injection.abort.or(abort);
        injection.bytes_per_second = [injection.bytes_per_second, bandwidth].into_iter().flatten().min();
    }
    injection
}

/// True for `share` of a million draws.
fn hit(share: u32, random: &mut impl FnMut() -> u64) -> bool {
    (u128::from(random()) * u128::from(MILLION)) >> 64 < u128::from(share)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, StatusCode};

    use super::*;
    use crate::{
        balance::tests::generator,
        model::{KeyMatch, ValueMatch},
    };

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn fault(name: &str) -> Fault {
        Fault { name: name.into(), headers: Vec::new(), delay: None, abort: None, bandwidth: None, expires: None }
    }

    fn abort(status: StatusCode, share: u32) -> Option<(Abort, u32)> {
        Some((Abort::Http(status), share))
    }

    #[test]
    fn each_effect_has_its_own_share() {
        let faults = [Fault {
            delay: Some((Duration::from_millis(5), 100_000)),
            abort: abort(StatusCode::IM_A_TEAPOT, 500_000),
            bandwidth: Some((1000, 1)),
            ..fault("a/x")
        }];
        let mut random = generator(9);
        let (mut delays, mut aborts, mut slow, mut both, mut named) = (0, 0, 0, 0, 0);
        for _ in 0..50_000 {
            let injection = inject(&faults, &HeaderMap::new(), NOW, &mut random);
            delays += u32::from(injection.delay.is_some());
            aborts += u32::from(injection.abort.is_some());
            slow += u32::from(injection.bytes_per_second.is_some());
            both += u32::from(injection.delay.is_some() && injection.abort.is_some());
            named += u32::from(injection.names == ["a/x"]);
        }
        assert!((4700..5300).contains(&delays) && (24_500..25_500).contains(&aborts), "{delays} {aborts}");
        assert!(slow < 5, "{slow}");
        assert!((2300..2700).contains(&both), "independent of each other: {both}");
        assert_eq!(named, delays + aborts - both + slow, "a name for each request that met the fault, and no other");
    }

    #[test]
    fn a_share_of_none_never_hits_and_of_all_always() {
        for (share, hits) in [(0, false), (MILLION, true)] {
            for random in [0, 1, u64::MAX / 2, u64::MAX] {
                assert_eq!(hit(share, &mut || random), hits, "{share} {random}");
            }
        }
    }

    #[test]
    fn an_expired_fault_does_nothing() {
        let end = NOW + Duration::from_secs(60);
        let faults = [Fault { abort: abort(StatusCode::BAD_GATEWAY, MILLION), expires: Some(end), ..fault("a/x") }];
        let at = |now| inject(&faults, &HeaderMap::new(), now, || 0);
        assert!(at(end - Duration::from_nanos(1)).abort.is_some());
        assert_eq!(at(end), Injection::default());
    }

    #[test]
    fn only_requests_with_all_of_the_headers_meet_it() {
        let key = |name, value: &str| KeyMatch {
            name: HeaderName::from_static(name),
            value: ValueMatch::Exact(value.into()),
        };
        let headers = vec![key("x-test", "1"), key("x-user", "eve")];
        let faults = [Fault { headers, abort: abort(StatusCode::BAD_GATEWAY, MILLION), ..fault("a/x") }];
        let mut sent = HeaderMap::new();
        sent.insert("x-test", HeaderValue::from_static("1"));
        assert_eq!(inject(&faults, &sent, NOW, || 0), Injection::default());
        sent.insert("x-user", HeaderValue::from_static("eve"));
        assert_eq!(inject(&faults, &sent, NOW, || 0).names, ["a/x"]);
    }

    #[test]
    fn of_several_faults_the_longest_delay_the_first_abort_and_the_slowest_rate_count() {
        let one = Fault {
            delay: Some((Duration::from_millis(5), MILLION)),
            abort: abort(StatusCode::BAD_GATEWAY, MILLION),
            bandwidth: Some((10, MILLION)),
            ..fault("a/one")
        };
        let two = Fault {
            delay: Some((Duration::from_millis(9), MILLION)),
            abort: Some((Abort::Reset, MILLION)),
            bandwidth: Some((20, MILLION)),
            ..fault("a/two")
        };
        let expected = Injection {
            delay: Some(Duration::from_millis(9)),
            abort: Some(Abort::Http(StatusCode::BAD_GATEWAY)),
            bytes_per_second: Some(10),
            names: vec!["a/one", "a/two"],
        };
        assert_eq!(inject(&[one, two], &HeaderMap::new(), NOW, || 7), expected);
    }
}
