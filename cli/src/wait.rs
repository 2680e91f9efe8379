//! Waiting for the sidecars: until each one that is connected has acknowledged what was written. Events are what is
//! compared: the control plane tells which one each sidecar's configuration reflects.

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
const POLL: Duration = Duration::from_millis(50);
/// After this, people are told who is being waited for.
const SILENCE: Duration = Duration::from_secs(1);

/// Returns when every sidecar that is connected and not about to leave has accepted what is pushed as of the event
/// `written`; an ACK means that requests see it.
///
/// # Errors
/// When some have not after `limit`, or one has refused something: with their names.
pub async fn until_synced(server: &Server, written: u64, limit: Duration) -> anyhow::Result<()> {
    let (start, mut told) = (Instant::now(), false);
    loop {
        let (proxies, _) = Proxies::ask(server).await?;
        let Some(pushed) = proxies.store_revision else {
            bail!("--wait: {} does not tell what its sidecars hold: is it of this version of Weft?", server.url());
        };
        let behind = behind(&proxies, written);
        if pushed >= written && behind.is_empty() {
            let refused = refused(&proxies);
            if !refused.is_empty() {
                bail!("not accepted by: {}", refused.join("; "));
            }
            anstream::eprintln!("acknowledged by {}", number(proxies.items.len(), "sidecar"));
            return Ok(());
        }
        let compiled = pushed >= written;
        if start.elapsed() >= limit {
            let limit = limit.as_secs();
            match compiled {
                false => bail!(
                    "the change has not been compiled in {limit} s; weft status and the log of the control plane say more"
                ),
                true => bail!("not acknowledged in {limit} s by: {}", behind.join("; ")),
            }
        }
        if start.elapsed() > SILENCE && !told {
            told = true;
            let who = if compiled { behind.join("; ") } else { "the control plane".to_owned() };
            anstream::eprintln!("{}", style::paint(style::STRONG, &format!("waiting for {who}")));
        }
        sleep(POLL).await;
    }
}

/// Each sidecar that has not answered all of what is pushed as of an event, with its state. One that is about to leave
/// is not waited for.
fn behind(proxies: &Proxies, written: u64) -> Vec<String> {
    let lags = |proxy: &&Proxy| !proxy.draining && proxy.store_revision < written;
    proxies.items.iter().filter(lags).map(|proxy| format!("{} ({})", proxy.id(), proxy.why())).collect()
}

/// Each sidecar that refuses something, with the reason.
fn refused(proxies: &Proxies) -> Vec<String> {
    proxies.items.iter().filter(|proxy| !proxy.draining).filter_map(Proxy::problem).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn who_lags_and_who_refuses_is_named_with_the_state_and_the_reason() {
        let item = |name: &str, state: &str, draining: bool, revision: u64| {
            json!({"name": name, "namespace": "shop", "draining": draining, "storeRevision": revision,
                "types": [{"type": "Service", "state": state, "error": "rules[0]: no"}]})
        };
        let items = json!({"storeRevision": 8, "items": [item("a", "SYNCED", false, 8), item("b", "STALE", false, 7),
            item("c", "STALE", true, 1), item("d", "ERROR", false, 8), item("e", "SYNCED", false, 6)]});
        let proxies = Proxies::deserialize(&items).unwrap();
        // What was acknowledged of an older view is no answer to this event.
        assert_eq!(behind(&proxies, 8), ["shop/b (STALE)", "shop/e (SYNCED)"]);
        assert_eq!(behind(&proxies, 7), ["shop/e (SYNCED)"]);
        assert_eq!(refused(&proxies), ["shop/d: rejected Service: rules[0]: no"]);
    }
}
