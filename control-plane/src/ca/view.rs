//! The authority as the API and the metrics show it: nothing secret.

use std::time::SystemTime;

use serde_json::{Value, json};
use weft_metrics::{Collector, Labels, float};

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

    /// Says what it issues, and until when it can.
    pub fn collect(&self, out: &mut Collector) {
        self.audit.collect(out);
        let (kept, none) = (lock(&self.kept), Labels::new(&[]));
        let roots = self.active.borrow().roots.iter().filter_map(|root| Some(Info::of(root).ok()?.not_after)).min();
        for (certificate, end) in [("issuer", kept.signer.not_after), ("root", roots.unwrap_or_default())] {
            let family = ("weft_ca_expiry_seconds", "End of the authority's certificates, Unix time");
            let end = float(u64::try_from(end).unwrap_or_default());
            out.gauge_with(family, &none, &[("certificate", certificate)], end);
        }
        for phase in [Phase::Stable, Phase::Prepared, Phase::Switched] {
            let present = if kept.state.phase == phase { 1.0 } else { 0.0 };
            let family = ("weft_ca_rotation_phase", "Phase of the rotation of the root: 1 for the present one");
            out.gauge_with(family, &none, &[("phase", phase.as_str())], present);
        }
        let revocations = float(u64::try_from(kept.state.revocations.len()).unwrap_or(u64::MAX));
        out.gauge("weft_ca_revocations", "Revocations in force", &none, revocations);
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
