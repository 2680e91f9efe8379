//! The authority as the API and the metrics show it: nothing secret.

use std::{fmt::Write, time::SystemTime};

use serde_json::{Value, json};

use super::{
    Ca,
    fleet::Waiting,
    lock,
    signer::{Info, Signer, date, seconds},
    state::{Authority, Phase},
};

impl Ca {
    /// The state, with who is waited for.
    #[must_use]
    pub fn view(&self, waiting: &Waiting) -> Value {
        let now = SystemTime::now();
        let warning = self.warning(now);
        let kept = lock(&self.kept);
        let roots = &self.active.borrow().roots;
        let source = if kept.external.is_some() { "files" } else { "embedded" };
        let all = roots.iter().enumerate().filter_map(|(number, root)| {
            let info = Info::of(root).ok()?;
            let role = match (kept.state.phase, number, kept.external.is_some()) {
                (_, 0, false) => "issues",
                (Phase::Prepared, _, false) => "next",
                (Phase::Switched, _, false) => "last",
                _ => "trusted",
            };
            let authority = if number == 0 { &kept.state.current } else { &kept.state.other };
            let key = authority
                .as_ref()
                .filter(|_| kept.external.is_none())
                .map(|of| self.directory.path(&of.root.key).is_file());
            Some(json!({
                "serial": info.serial.to_string(), "role": role, "notBefore": date(info.not_before),
                "notAfter": date(info.not_after), "expiresInSeconds": info.not_after - seconds(now), "keyPresent": key,
            }))
        });
        json!({
            "trustDomain": self.trust_domain, "source": source, "phase": kept.state.phase.as_str(),
            "issuer": signer(&kept.signer, now), "otherIssuer": kept.other.as_ref().map(|other| signer(other, now)),
            "roots": all.collect::<Vec<_>>(), "renewIssuedBeforeMs": kept.state.renew_issued_before,
            "lifetimeSeconds": self.lifetime.as_secs(), "revocations": kept.state.revocations,
            "waiting": waiting, "next": next(&kept.state.current, kept.state.phase), "warning": warning,
        })
    }

    /// Lines for `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = self.audit.metrics();
        let kept = lock(&self.kept);
        let roots = self.active.borrow().roots.iter().filter_map(|root| Some(Info::of(root).ok()?.not_after)).min();
        text.push_str("# HELP weft_ca_expiry_seconds End of the authority's certificates, Unix time.\n# TYPE weft_ca_expiry_seconds gauge\n");
        let _ = writeln!(text, "weft_ca_expiry_seconds{{certificate=\"issuer\"}} {}", kept.signer.not_after);
        let _ = writeln!(text, "weft_ca_expiry_seconds{{certificate=\"root\"}} {}", roots.unwrap_or_default());
        text.push_str("# HELP weft_ca_rotation_phase Phase of the rotation of the root: 1 for the present one.\n# TYPE weft_ca_rotation_phase gauge\n");
        for phase in [Phase::Stable, Phase::Prepared, Phase::Switched] {
            let present = u8::from(kept.state.phase == phase);
            let _ = writeln!(text, "weft_ca_rotation_phase{{phase=\"{}\"}} {present}", phase.as_str());
        }
        text.push_str("# HELP weft_ca_revocations Revocations in force.\n# TYPE weft_ca_revocations gauge\n");
        let _ = writeln!(text, "weft_ca_revocations {}", kept.state.revocations.len());
        text
    }
}

fn signer(signer: &Signer, now: SystemTime) -> Value {
    json!({
        "serial": signer.serials.first().map(ToString::to_string), "notBefore": date(signer.not_before),
        "notAfter": date(signer.not_after), "expiresInSeconds": signer.not_after - seconds(now),
    })
}

/// The steps that can be taken now.
fn next(current: &Option<Authority>, phase: Phase) -> &'static [&'static str] {
    match (current, phase) {
        (None, _) => &[],
        (_, Phase::Stable) => &["issuer", "root-prepare"],
        (_, Phase::Prepared) => &["root-switch", "root-rollback", "issuer"],
        (_, Phase::Switched) => &["root-finish", "root-rollback", "issuer"],
    }
}
