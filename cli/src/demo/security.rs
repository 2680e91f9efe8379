//! The stages about identity: who may call whom, another root, and no plaintext any more; what was seen in them, and
//! whether it is enough.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::{process::Command, time::timeout};
use weft_examples::{client::Client, ledger};

use super::{
    checks::{Check, Window},
    load::Load,
    mesh::Mesh,
};
use crate::client;

/// Calls of each kind that are to be refused.
const CALLS: u64 = 5;
/// For one call.
const CALL: Duration = Duration::from_secs(5);
/// The authority, at the control plane.
const CA: &str = "/weft/v1/ca";
/// Plaintext from outside ends here, for the whole namespace.
const STRICT: &str = "apiVersion: weft.dev/v1alpha1\nkind: PeerAuthentication\nmetadata:\n  name: strict\n  namespace: \
                      default\nspec:\n  mode: Strict\n";

/// Calls that were answered, and those that were not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Calls {
    /// With what was asked for.
    pub answered: u64,
    /// With the end of the connection, or a refusal.
    pub refused: u64,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Calls of the load to the ledger, which lets only orders in.
    pub ledger: Calls,
    /// Denials that the ledger's sidecar has counted.
    pub denials: u64,
    /// Changes of the root, from the first step to the last.
    pub root_rotations: u64,
    /// Requests meanwhile.
    pub rotation: Window,
    /// Calls in plaintext while the mode is permissive.
    pub permissive: Calls,
    /// Calls in plaintext once it is strict.
    pub strict: Calls,
    /// Requests from then on.
    pub under_strict: Window,
}

impl Security {
    /// Calls the ledger as somebody who may not.
    pub async fn deny(&mut self, mesh: &Mesh) {
        for _ in 0..CALLS {
            let client = ledger::Client::new(mesh.ledger());
            let answered = timeout(CALL, client.write("theft")).await.is_ok_and(|answer| answer.is_ok());
            self.ledger.count(answered);
        }
        self.denials = mesh.count("ledger", "weft_authorization_denied_total").await;
    }

    /// Changes the root with the command of an operator, while requests go on.
    pub async fn rotate_root(&mut self, mesh: &Mesh, load: &Load) -> anyhow::Result<()> {
        let (server, before) = (mesh.server(), load.window());
        let root = roots(&serde_json::from_slice(&client::get(&server, CA).await?).context("read the authority")?);
        let program = std::env::current_exe().context("path of this program: unknown")?;
        let output = Command::new(program)
            .args(["certs", "rotate", "root", "--all", "--timeout", "30s", "-o", "json", "--server", &server])
            .kill_on_drop(true)
            .output()
            .await
            .context("start weft certs rotate root")?;
        self.rotation = load.window().since(before);
        // What went wrong is a finding for the check.
        let Ok(state) = serde_json::from_slice::<Value>(&output.stdout) else {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            return Ok(());
        };
        let now = roots(&state);
        let changed = state["phase"] == "stable" && root.len() == 1 && now.len() == 1 && root != now;
        self.root_rotations += u64::from(output.status.success() && changed);
        Ok(())
    }

    /// Calls in plaintext, switches strict mode on, and calls again.
    pub async fn strict(&mut self, mesh: &Mesh) -> anyhow::Result<()> {
        self.permissive.count(plaintext(mesh.front()).await);
        mesh.write_resource("strict.yaml", STRICT)?;
        let in_force = async { while plaintext(mesh.front()).await {} };
        timeout(super::PATIENCE, in_force).await.ok();
        for _ in 0..CALLS {
            self.strict.count(plaintext(mesh.front()).await);
        }
        Ok(())
    }

    /// A verdict for each stage.
    pub fn checks(&self) -> [Check; 3] {
        let Calls { answered, refused } = self.ledger;
        let denied = Check {
            name: "denied",
            ok: answered == 0 && refused > 0 && self.denials > 0,
            detail: format!("ledger refused {refused} of {} calls that no policy allows", answered + refused),
        };
        let Window { requests, failed, .. } = self.rotation;
        let root = Check {
            name: "root-rotation",
            ok: self.root_rotations > 0 && requests > 0 && failed == 0,
            detail: format!("{} of the root; {failed} of {requests} requests meanwhile failed", self.root_rotations),
        };
        let (before, after, Window { requests, failed, .. }) = (self.permissive, self.strict, self.under_strict);
        let strict = Check {
            name: "strict",
            ok: before.answered > 0 && after.answered == 0 && after.refused > 0 && requests > 0 && failed == 0,
            detail: format!(
                "plaintext: {} answered before, {} refused and {} answered after; {failed} of {requests} others failed",
                before.answered, after.refused, after.answered
            ),
        };
        [denied, root, strict]
    }
}

impl Calls {
    const fn count(&mut self, answered: bool) {
        if answered {
            self.answered += 1;
        } else {
            self.refused += 1;
        }
    }
}

/// Whether the storefront answers a caller without a certificate.
async fn plaintext(front: SocketAddr) -> bool {
    let client = Client::new(front, "storefront");
    let answer = timeout(CALL, client.call(Method::GET, "/", Bytes::new())).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
}

fn roots(state: &Value) -> Vec<String> {
    let serials = state["roots"].as_array().into_iter().flatten().filter_map(|root| root["serial"].as_str());
    serials.map(str::to_owned).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What passes.
    pub fn good() -> Security {
        let window = Window { requests: 400, failed: 0, v2: 0 };
        Security {
            ledger: Calls { answered: 0, refused: 5 },
            denials: 5,
            root_rotations: 1,
            rotation: window,
            permissive: Calls { answered: 1, refused: 0 },
            strict: Calls { answered: 0, refused: 5 },
            under_strict: window,
        }
    }

    fn breaks(name: &str, breakage: impl FnOnce(&mut Security)) {
        let mut seen = good();
        breakage(&mut seen);
        let checks = seen.checks().into_iter();
        let failed: Vec<_> = checks.filter(|check| !check.ok).map(|check| check.name).collect();
        assert_eq!(failed, [name]);
    }

    #[test]
    fn denied_fails_when_a_call_was_answered_none_was_made_or_no_policy_refused_it() {
        breaks("denied", |s| s.ledger.answered = 1);
        breaks("denied", |s| s.ledger.refused = 0);
        breaks("denied", |s| s.denials = 0);
    }

    #[test]
    fn root_rotation_fails_when_the_root_is_the_same_or_a_request_failed_or_none_was_made() {
        breaks("root-rotation", |s| s.root_rotations = 0);
        breaks("root-rotation", |s| s.rotation.failed = 1);
        breaks("root-rotation", |s| s.rotation.requests = 0);
    }

    #[test]
    fn strict_fails_when_plaintext_is_answered_was_never_or_when_others_suffer() {
        breaks("strict", |s| s.strict.answered = 1);
        breaks("strict", |s| s.strict.refused = 0);
        breaks("strict", |s| s.permissive.answered = 0);
        breaks("strict", |s| s.under_strict.failed = 1);
        breaks("strict", |s| s.under_strict.requests = 0);
    }
}
