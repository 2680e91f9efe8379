//! The log as the API tells it.

use serde_json::Value;

use crate::http::Client;

/// The events after this revision up to the newest, oldest first, with their objects; and the newest revision.
pub fn after(client: &mut Client, after: u64) -> (u64, Vec<Value>) {
    let (mut events, mut before, mut head) = (Vec::new(), String::new(), None);
    loop {
        let path = format!("/weft/v1/history?objects=true&limit=1000{before}");
        let page = client.send("GET", &path, "").expect("an answer");
        assert_eq!(page.code, 200, "{page:?}");
        let items = page.body["items"].as_array().unwrap_or_else(|| panic!("{page:?}"));
        let newer = items.iter().filter(|event| revision(event) > after);
        events.extend(newer.cloned());
        let head = *head.get_or_insert_with(|| page.body["revision"].as_u64().expect("a revision"));
        match page.body["nextBefore"].as_u64() {
            Some(next) if next > after + 1 => before = format!("&before={next}"),
            _ => {
                events.reverse();
                return (head, events);
            }
        }
    }
}

/// Whether a client wrote this, rather than the control plane: the defaults at its first start, statuses later.
pub fn is_of_client(event: &Value) -> bool {
    event["author"] != "weft"
}

/// The revision of an event.
pub fn revision(event: &Value) -> u64 {
    event["revision"].as_u64().unwrap_or_else(|| panic!("{event}"))
}

/// Asserts that the chain of hashes is whole, and gives the newest revision.
pub fn verified(client: &mut Client) -> u64 {
    let reply = client.send("GET", "/weft/v1/history/verify", "").expect("an answer");
    assert_eq!((reply.code, &reply.body["verified"]), (200, &true.into()), "{reply:?}");
    reply.body["revision"].as_u64().unwrap_or_else(|| panic!("{reply:?}"))
}
