//! Waiting for the sidecars: until each one that is connected has acknowledged what was written.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use crate::{
    listing::number,
    server::Server,
    status::{Proxies, Proxy},
    style,
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(200);
/// Looks in a row that must find everybody synced: the first may come before the change is sent at all.
const STEADY: u32 = 2;
/// A write that changes nothing for any sidecar makes no new revision of what is pushed; after this it is taken for one.
const SETTLED: Duration = Duration::from_secs(2);
/// After this, people are told who is being waited for.
const SILENCE: Duration = Duration::from_secs(1);

/// What was pushed before the write.
pub struct Wait {
    before: u64,
}

impl Wait {
    /// To be called before the write.
    pub async fn begin(server: &Server) -> anyhow::Result<Self> {
        Ok(Self { before: Proxies::ask(server).await?.0.revision })
    }

    /// Returns when everybody is synced; `written` is the revision of the last write, none when nothing changed.
    pub async fn until_synced(&self, server: &Server, written: Option<u64>, limit: Duration) -> anyhow::Result<()> {
        let (start, mut steady, mut told) = (Instant::now(), 0, false);
        loop {
            let (proxies, _) = Proxies::ask(server).await?;
            let compiled = written.is_none() || self.compiled(&proxies, written, start.elapsed());
            let behind = behind(&proxies);
            steady = if compiled && behind.is_empty() { steady + 1 } else { 0 };
            if steady == STEADY {
                anstream::eprintln!("acknowledged by {}", number(proxies.items.len(), "sidecar"));
                return Ok(());
            }
            if start.elapsed() >= limit {
                let limit = limit.as_secs();
                match behind.is_empty() {
                    true => bail!(
                        "the change has not been compiled in {limit} s; weft status and the log of the control plane say more"
                    ),
                    false => bail!("not acknowledged in {limit} s by: {}", behind.join("; ")),
                }
            }
            if start.elapsed() > SILENCE && !told {
                told = true;
                let who = if behind.is_empty() { "the control plane".to_owned() } else { behind.join("; ") };
                anstream::eprintln!("{}", style::paint(style::STRONG, &format!("waiting for {who}")));
            }
            sleep(POLL).await;
        }
    }

    fn compiled(&self, proxies: &Proxies, written: Option<u64>, elapsed: Duration) -> bool {
        match (proxies.store_revision, written) {
            (Some(known), Some(written)) => known >= written,
            _ => proxies.revision > self.before || elapsed >= SETTLED,
        }
    }
}

/// Each sidecar that does not hold what it should hold, with its state.
fn behind(proxies: &Proxies) -> Vec<String> {
    let lags = |proxy: &&Proxy| !proxy.draining && proxy.state() != "SYNCED";
    proxies
        .items
        .iter()
        .filter(lags)
        .map(|proxy| format!("{}/{} ({})", proxy.namespace, proxy.name, proxy.why()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    fn proxies(value: serde_json::Value) -> Proxies {
        Proxies::deserialize(&value).unwrap()
    }

    #[test]
    fn who_lags_is_named_with_the_state_and_the_reason() {
        let item = |name: &str, state: &str, draining: bool| {
            json!({"name": name, "namespace": "shop", "draining": draining,
                "types": [{"type": "Service", "state": state, "error": "rules[0]: no"}]})
        };
        let items = json!({"items": [item("a", "SYNCED", false), item("b", "STALE", false), item("c", "STALE", true),
            item("d", "ERROR", false)]});
        assert_eq!(behind(&proxies(items)), ["shop/b (STALE)", "shop/d (rejected Service: rules[0]: no)"]);
    }

    #[test]
    fn a_write_is_compiled_when_the_store_says_so_or_something_newer_is_pushed() {
        let wait = Wait { before: 7 };
        let compiled = |value, seconds| wait.compiled(&proxies(value), Some(12), Duration::from_secs(seconds));
        assert!(compiled(json!({"revision": 8}), 0));
        assert!(!compiled(json!({"revision": 7}), 0));
        assert!(compiled(json!({"revision": 7}), 2), "it changed nothing that is pushed");
        assert!(!compiled(json!({"revision": 9, "storeRevision": 11}), 5));
        assert!(compiled(json!({"revision": 7, "storeRevision": 12}), 0));
    }
}
