use super::*;

#[test]
fn a_post_is_idempotent_only_with_a_key() {
    let mut headers = HeaderMap::new();
    assert!(!idempotent(&Method::POST, &headers));
    assert!(!idempotent(&Method::PATCH, &headers));
    assert!(idempotent(&Method::GET, &headers));
    headers.insert("idempotency-key", http::HeaderValue::from_static("1"));
    assert!(idempotent(&Method::POST, &headers));
}

#[test]
fn back_off_is_full_jitter_with_a_cap() {
    let wait = |retry, random| backoff(Duration::from_millis(25), Duration::from_millis(250), retry, random);
    for random in [0, 1, u64::MAX / 2, u64::MAX] {
        assert!(wait(1, random) < Duration::from_millis(25));
        assert!(wait(2, random) < Duration::from_millis(50));
        assert!(wait(40, random) < Duration::from_millis(250));
    }
}
