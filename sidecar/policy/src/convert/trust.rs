//! Trust bundles from the wire. Whether the roots are certificates is weft-svid's to say.

use weft_proto::v1;

use super::{Invalid, invalid};
use crate::{
    SpiffeId,
    model::{Revocation, TrustBundle},
};

/// Roots of one trust domain.
pub const MAX_ROOTS: usize = 16;
/// Revocations in one trust domain.
pub const MAX_REVOCATIONS: usize = 4096;
/// Bytes of a serial number (RFC 5280 section 4.1.2.2).
pub const MAX_SERIAL: usize = 20;

/// Converts a trust bundle.
///
/// # Errors
/// The first field that is wrong.
pub fn trust_bundle(wire: v1::TrustBundle) -> Result<TrustBundle, Invalid> {
    if let Err(error) = SpiffeId::parse(&format!("spiffe://{}", wire.trust_domain)) {
        return invalid("trust_domain", wire.trust_domain, error.to_string());
    }
    if wire.trust_domain.contains('/') {
        return invalid("trust_domain", wire.trust_domain, "must be a trust domain without a path");
    }
    match wire.roots.len() {
        0 => return invalid("roots", "[]", "must have at least one certificate"),
        1..=MAX_ROOTS => {}
        many => return invalid("roots", format!("{many} certificates"), format!("must be at most {MAX_ROOTS}")),
    }
    if wire.revocations.len() > MAX_REVOCATIONS {
        let many = format!("{} entries", wire.revocations.len());
        return invalid("revocations", many, format!("must be at most {MAX_REVOCATIONS}"));
    }
    let mut revocations = Vec::with_capacity(wire.revocations.len());
    for (index, one) in wire.revocations.into_iter().enumerate() {
        revocations.push(revocation(&format!("revocations[{index}]"), one, &wire.trust_domain)?);
    }
    Ok(TrustBundle {
        trust_domain: wire.trust_domain.into(),
        roots: wire.roots.into_iter().map(|root| root.to_vec()).collect(),
        revocations,
        renew_issued_before: wire.renew_issued_before,
    })
}

/// One that is not understood is not left out: who ignores it would go on trusting what it means.
fn revocation(path: &str, wire: v1::Revocation, trust_domain: &str) -> Result<Revocation, Invalid> {
    use v1::revocation::What;
    match wire.what {
        None => invalid(path, "", "must have a serial or an identity; this version knows nothing else"),
        Some(What::Serial(serial)) => {
            if serial.is_empty() || serial.len() > MAX_SERIAL || serial[0] == 0 {
                let text: String = serial.iter().take(2 * MAX_SERIAL).map(|byte| format!("{byte:02x}")).collect();
                let reason = format!("must be 1 to {MAX_SERIAL} bytes without leading zeros");
                return invalid(format!("{path}.serial"), text, reason);
            }
            Ok(Revocation::Serial(serial.to_vec().into()))
        }
        Some(What::Identity(identity)) => {
            let field = format!("{path}.identity");
            let id = match SpiffeId::parse(&identity.spiffe_id) {
                Ok(id) if id.trust_domain() == trust_domain => id,
                Ok(id) => {
                    return invalid(
                        format!("{field}.spiffe_id"),
                        id,
                        format!("must be in trust domain {trust_domain}"),
                    );
                }
                Err(error) => return invalid(format!("{field}.spiffe_id"), identity.spiffe_id, error.to_string()),
            };
            if identity.issued_before == 0 {
                return invalid(format!("{field}.issued_before"), 0, "must be at least 1: nothing began before 0");
            }
            Ok(Revocation::Identity { id, issued_before: identity.issued_before })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(revocations: Vec<v1::Revocation>) -> v1::TrustBundle {
        let roots = vec![b"root".as_slice().into()];
        v1::TrustBundle { trust_domain: "td".into(), roots, revocations, renew_issued_before: 7 }
    }

    fn serial(bytes: &[u8]) -> v1::Revocation {
        v1::Revocation { what: Some(v1::revocation::What::Serial(bytes.to_vec().into())) }
    }

    fn identity(spiffe_id: &str, issued_before: u64) -> v1::Revocation {
        let identity = v1::RevokedIdentity { spiffe_id: spiffe_id.into(), issued_before };
        v1::Revocation { what: Some(v1::revocation::What::Identity(identity)) }
    }

    #[test]
    fn a_trust_bundle_needs_a_root_and_has_at_most_sixteen() {
        let with = |roots| v1::TrustBundle { roots, ..wire(vec![]) };
        assert_eq!(trust_bundle(with(vec![])).expect_err("empty").field, "roots");
        let root = b"root".as_slice().into();
        assert!(trust_bundle(with(vec![root; MAX_ROOTS])).is_ok());
        let root = b"root".as_slice().into();
        assert_eq!(trust_bundle(with(vec![root; MAX_ROOTS + 1])).expect_err("too many").field, "roots");
    }

    #[test]
    fn a_trust_domain_has_no_path() {
        let wire = v1::TrustBundle { trust_domain: "td/x".into(), ..wire(vec![]) };
        assert_eq!(trust_bundle(wire).expect_err("a path").field, "trust_domain");
    }

    #[test]
    fn revocations_are_converted() {
        let bundle = trust_bundle(wire(vec![serial(&[1, 0]), identity("spiffe://td/ns/a/sa/b", 9)])).expect("valid");
        let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").expect("valid");
        let serial = Revocation::Serial(vec![1, 0].into());
        assert_eq!(bundle.revocations, [serial, Revocation::Identity { id, issued_before: 9 }]);
        assert_eq!(bundle.renew_issued_before, 7);
    }

    #[test]
    fn a_revocation_that_would_mean_nothing_refuses_the_bundle() {
        for (bad, field) in [
            (v1::Revocation { what: None }, "revocations[1]"),
            (serial(&[]), "revocations[1].serial"),
            (serial(&[0, 1]), "revocations[1].serial"),
            (serial(&[1; MAX_SERIAL + 1]), "revocations[1].serial"),
            (identity("spiffe://other/ns/a/sa/b", 9), "revocations[1].identity.spiffe_id"),
            (identity("td/ns/a/sa/b", 9), "revocations[1].identity.spiffe_id"),
            (identity("spiffe://td/ns/a/sa/b", 0), "revocations[1].identity.issued_before"),
        ] {
            assert_eq!(trust_bundle(wire(vec![serial(&[1]), bad])).expect_err(field).field, field);
        }
        let many = vec![serial(&[1]); MAX_REVOCATIONS + 1];
        assert_eq!(trust_bundle(wire(many)).expect_err("too many").field, "revocations");
    }
}
