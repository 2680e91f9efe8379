//! Whether the connected sidecars are ready for a step of a rotation: who has not acknowledged the roots, and whose
//! certificate still comes from an issuer that would not be trusted afterwards.

use prost::Message;
use serde::Serialize;
use weft_proto::ResourceType;

use super::{
    Ca, lock,
    rotation::Step,
    state::{FIRST_KEY, Phase},
};
use crate::push::{self, proxies::Proxy};

/// Sidecars that a step would cut off, as `namespace/name`, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// They have not acknowledged the present trust bundle.
    pub unacknowledged: Vec<String>,
    /// Their certificates are not of the root whose issuer issues now.
    pub other_root: Vec<String>,
}

impl Ca {
    /// Who is not ready, among these connected sidecars.
    #[must_use]
    pub fn waiting(&self, proxies: &[Proxy]) -> Waiting {
        let bundle = push::version(&self.bundle().encode_to_vec());
        let holds = |proxy: &Proxy| {
            let of = proxy.types.iter().find(|of| of.kind == ResourceType::TrustBundle);
            of.and_then(|of| of.holds.as_ref()) == Some(&bundle)
        };
        let names = |wanted: &dyn Fn(&Proxy) -> bool| {
            let mut names: Vec<_> = proxies.iter().filter(|proxy| wanted(proxy)).map(name).collect();
            names.sort();
            names
        };
        let ours = self.issuers();
        let unacknowledged = names(&|proxy| !holds(proxy));
        let other_root = names(&|proxy| {
            let issuers = self.current_issuers(proxy);
            issuers.is_empty() || !issuers.iter().all(|issuer| ours.contains(issuer))
        });
        Waiting { unacknowledged, other_root }
    }

    /// The sidecars that a step would cut off, and why; none when it may be taken.
    #[must_use]
    pub fn hindrance(&self, step: Step, proxies: &[Proxy]) -> Option<(String, Vec<String>)> {
        let phase = self.active.borrow().phase;
        let waiting = self.waiting(proxies);
        let (names, why) = match (step, phase) {
            (Step::RootSwitch, Phase::Prepared) | (Step::RootRollback, Phase::Switched) => {
                (waiting.unacknowledged, "have not acknowledged both roots and would trust no new certificate")
            }
            (Step::RootFinish, Phase::Switched) | (Step::RootRollback, Phase::Prepared) => {
                (waiting.other_root, "still show a certificate of the root that would go")
            }
            _ => return None,
        };
        (!names.is_empty()).then(|| (format!("{} connected sidecars {why}", names.len()), names))
    }

    /// Keys by which the leaves of the current root are signed; of the first root's some say nothing of their key.
    fn issuers(&self) -> Vec<Vec<u8>> {
        let kept = lock(&self.kept);
        let mut keys = vec![kept.signer.key_id.clone()];
        keys.extend(kept.state.past.iter().filter_map(|past| hex(&past.key_id)));
        if kept.state.current.as_ref().is_some_and(|current| current.root.key == FIRST_KEY) {
            keys.push(Vec::new());
        }
        keys
    }

    /// The key that may have signed the certificate that a sidecar has now; none when that is not known.
    fn current_issuers(&self, proxy: &Proxy) -> Vec<Vec<u8>> {
        let Some(presented) = &proxy.presented else { return Vec::new() };
        let end = i64::try_from(proxy.registration.certificate_end_ms / 1000).unwrap_or(i64::MAX);
        if end == 0 || end == presented.not_after {
            return vec![presented.issuer.clone()];
        }
        lock(&self.recents).ending(&proxy.peer.id, end).iter().map(|recent| recent.issuer.clone()).collect()
    }
}

fn name(proxy: &Proxy) -> String {
    if proxy.registration.name.is_empty() {
        return proxy.peer.id.to_string();
    }
    format!("{}/{}", proxy.registration.namespace, proxy.registration.name)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
