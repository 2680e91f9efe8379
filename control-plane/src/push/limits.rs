//! Bounds of what a peer may put into a request on its stream.

use weft_proto::discovery::DeltaDiscoveryRequest;

/// Bytes of one request; a sidecar that comes back says in one request all that it holds of a type.
pub const REQUEST: usize = 8 * 1024 * 1024;
/// Names that one stream may subscribe to, over all types.
pub const SUBSCRIPTIONS: usize = 20_000;
/// Resources of one type that a stream may say it holds: endpoint slices are more than their services.
const HELD: usize = 100_000;
/// Bytes of a name: a trust domain, or namespace, service and slice.
const NAME: usize = 255;
/// Bytes of a version or nonce; ours have 16 and 20.
const VERSION: usize = 64;
/// Bytes that are kept of a text that explains a refusal.
const TEXT: usize = 1024;

/// Whether a request keeps to the bounds.
///
/// # Errors
/// The field and the limit that it breaks.
pub fn check(request: &DeltaDiscoveryRequest) -> Result<(), String> {
    let held = &request.initial_resource_versions;
    if held.len() > HELD {
        return Err(format!("initial_resource_versions: {} are more than {HELD}", held.len()));
    }
    let (subscribed, gone) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
    if subscribed.len().max(gone.len()) > SUBSCRIPTIONS {
        return Err(format!("resource_names_subscribe: more than {SUBSCRIPTIONS} names"));
    }
    if let Some(name) = subscribed.iter().chain(gone).chain(held.keys()).find(|name| name.len() > NAME) {
        return Err(format!("a resource name has {} bytes, which are more than {NAME}", name.len()));
    }
    if let Some(version) = held.values().chain([&request.response_nonce]).find(|version| version.len() > VERSION) {
        return Err(format!("a version or nonce has {} bytes, which are more than {VERSION}", version.len()));
    }
    Ok(())
}

/// A peer's text, cut to a bounded length.
#[must_use]
pub fn text(mut text: String) -> String {
    if text.len() > TEXT {
        text.truncate(text.floor_char_boundary(TEXT));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_versions_and_their_numbers_are_bounded() {
        let long = "x".repeat(256);
        let request = DeltaDiscoveryRequest::default;
        assert_eq!(check(&request()), Ok(()));
        let cases = [
            DeltaDiscoveryRequest { resource_names_subscribe: vec![long.clone()], ..request() },
            DeltaDiscoveryRequest { resource_names_unsubscribe: vec![long.clone()], ..request() },
            DeltaDiscoveryRequest { initial_resource_versions: [(long.clone(), String::new())].into(), ..request() },
            DeltaDiscoveryRequest { initial_resource_versions: [("a/x".into(), long.clone())].into(), ..request() },
            DeltaDiscoveryRequest { response_nonce: long, ..request() },
            DeltaDiscoveryRequest { resource_names_subscribe: vec![String::new(); 20_001], ..request() },
            DeltaDiscoveryRequest { resource_names_unsubscribe: vec![String::new(); 20_001], ..request() },
            DeltaDiscoveryRequest {
                initial_resource_versions: (0..100_001).map(|n| (n.to_string(), String::new())).collect(),
                ..request()
            },
        ];
        for (index, request) in cases.iter().enumerate() {
            assert!(check(request).is_err(), "case {index}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(text("short".into()), "short");
        let cut = text("ä".repeat(10_000));
        assert!(cut.len() <= TEXT + 3 && cut.ends_with("ä…"), "{}", cut.len());
    }
}
