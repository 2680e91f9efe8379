//! How the authority begins: its first root and issuing certificate, what a start reads back, and what it replaces
//! because it could not go on with it.

use std::{sync::Arc, time::SystemTime};

use anyhow::{Context, Result, bail};
use rand::RngCore;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{
    files::Directory,
    revocation::Revocations,
    signer::{Info, Signer, date, make_issuer, make_root, seconds},
    state::{Authority, FIRST_KEY, FIRST_ROOT, Keyed, State, is_key},
    trusted::pem,
};

/// Makes the first root, or takes the one over that earlier versions made, and its issuing certificate.
pub(super) fn found(directory: &Directory, state: &mut State, now: SystemTime) -> Result<()> {
    let (key_file, root_file) = (directory.path(FIRST_KEY), directory.path(FIRST_ROOT));
    let (root, root_key) = if let Some(text) = directory.read(FIRST_KEY)? {
        let key = KeyPair::from_pem(&text).with_context(|| format!("{}: no private key", key_file.display()))?;
        let root = directory.read(FIRST_ROOT)?;
        let root = root.with_context(|| format!("{}: it is gone, and its key is there", root_file.display()))?;
        (root.to_string(), key)
    } else {
        if let Some(name) = directory.names()?.iter().find(|name| is_key(name)) {
            bail!(
                "{}: a key of an authority whose state, {}, is gone: restore that file from a backup, or move the key \
                 away for a new authority, whom no sidecar trusts yet",
                directory.path(name).display(),
                directory.path(super::state::STATE).display()
            );
        }
        let key = KeyPair::generate()?;
        let root = pem("CERTIFICATE", &make_root(&key, &state.trust_domain, now)?);
        // The key last: without it there is nothing.
        directory.write(FIRST_ROOT, root.as_bytes())?;
        directory.write(FIRST_KEY, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        (root, key)
    };
    let root = Keyed { certificate: root, key: FIRST_KEY.into() };
    let der = root.der().with_context(|| root_file.display().to_string())?;
    let (issuer, key) = issuer_below(&der, root_key, &state.trust_domain, now)
        .with_context(|| format!("{} and {}", root_file.display(), key_file.display()))?;
    directory.write(&issuer.key, key.as_bytes())?;
    state.current = Some(Authority { root, issuer });
    Ok(())
}

/// Makes another issuing certificate where that of the state has expired, as after a long stop, or is revoked, as when
/// files issued meanwhile: an authority that cannot start could not be told to make one either.
pub(super) fn revive(directory: &Directory, state: &mut State, now: SystemTime) -> Result<()> {
    let Some(current) = state.current.clone() else { return Ok(()) };
    state.remember(&[current.issuer.der()?], now)?;
    let Info { serial, not_after, .. } = Info::of(&current.issuer.der()?)?;
    let why = if seconds(now) >= not_after {
        format!("expired at {}", date(not_after))
    } else if Revocations::of(&state.revocations).has(&serial) {
        format!("{serial} is revoked")
    } else {
        return Ok(());
    };
    let root_key = current.root.load_key(directory);
    let root_key =
        root_key.with_context(|| format!("the issuing certificate {why}, and another one needs the root's key"))?;
    let (issuer, key) = issuer_below(&current.root.der()?, root_key, &state.trust_domain, now)?;
    directory.write(&issuer.key, key.as_bytes())?;
    tracing::warn!("the issuing certificate {why}: there is another one below the same root");
    state.current = Some(Authority { root: current.root.clone(), issuer });
    Ok(())
}

/// The signers of a state, and its roots, the one that issues first.
#[allow(clippy::type_complexity, reason = "taken apart where it is called")]
pub(super) fn load(
    directory: &Directory,
    state: &State,
    now: SystemTime,
) -> Result<(Arc<Signer>, Option<Arc<Signer>>, Vec<CertificateDer<'static>>)> {
    let roots = roots(state)?;
    let load = |authority: &Authority| -> Result<Arc<Signer>> {
        // The root's key may be elsewhere; where it is, nobody else may read it.
        directory.read(&authority.root.key)?;
        let key = authority.issuer.load_key(directory)?;
        let chain = vec![authority.issuer.der()?];
        let signer = Signer::new(chain, key, &roots, &state.trust_domain, now);
        Ok(Arc::new(signer.with_context(|| directory.path(&authority.issuer.key).display().to_string())?))
    };
    let current = load(state.current.as_ref().context("there is no issuing certificate")?)?;
    // Of another that has expired nothing is needed any more.
    let other = state.other.as_ref().and_then(|other| {
        load(other)
            .map_err(|error| {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the other issuing certificate of the rotation cannot be used"
                );
            })
            .ok()
    });
    Ok((current, other, roots))
}

pub(super) fn roots(state: &State) -> Result<Vec<CertificateDer<'static>>> {
    let all = state.current.iter().chain(&state.other);
    all.map(|authority| authority.root.der().context("root")).collect()
}

/// An issuing certificate below this root, and its key in PEM.
pub(super) fn issuer_below(
    root: &CertificateDer<'static>,
    root_key: KeyPair,
    trust_domain: &str,
    now: SystemTime,
) -> Result<(Keyed, Zeroizing<String>)> {
    let key = KeyPair::generate()?;
    let issuer = make_issuer(&key, root, root_key, trust_domain, now)?;
    let keyed = Keyed { certificate: pem("CERTIFICATE", &issuer), key: key_name("issuer") };
    Ok((keyed, Zeroizing::new(key.serialize_pem())))
}

/// A file name that was never used.
pub(super) fn key_name(kind: &str) -> String {
    let mut random = [0; 8];
    rand::rng().fill_bytes(&mut random);
    format!("ca-{kind}-{}.key", random.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
