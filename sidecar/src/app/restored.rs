//! What a sidecar starts from: the state directory's content, or nothing.

use std::{sync::Arc, time::SystemTime};

use anyhow::Result;

use super::worker::Listeners;
use crate::{
    config::SidecarArgs,
    discovery::state::State,
    identity::Enrolment,
    state::{self, Found, Owner, Store, identity::StoredIdentity, key::StateKey},
    telemetry::Telemetry,
};

/// The start.
pub struct Restored {
    /// The state directory; `None`: there is none, or it is not used.
    pub store: Option<Arc<Store>>,
    /// The certificate of before.
    pub stored: Option<StoredIdentity>,
    /// What discovery begins with.
    pub state: State,
    /// When the configuration in `state` was last right; `None`: there is none.
    pub from_disk: Option<SystemTime>,
}

/// Reads the state directory, if there is one. What is refused leaves a start as without it.
///
/// # Errors
/// When --state-key makes no key: going on would write the private key unsealed.
pub fn restore(
    args: &SidecarArgs,
    listeners: &Listeners,
    enrolment: &Enrolment,
    telemetry: &Telemetry,
) -> Result<Restored> {
    let declared = || listeners.upstreams.iter().map(|(upstream, _)| upstream.service.clone());
    let empty = || State::new(&args.id(), declared());
    let key = args.state_key.as_deref().map(StateKey::load).transpose()?;
    let owner = Owner {
        workload: args.id(),
        namespace: args.namespace.clone(),
        account: args.account().into(),
        trust_domain: enrolment.trust_domain(),
    };
    let opened = args.state_dir.as_deref().and_then(|dir| state::start(dir, key, owner, args.state_max_age, telemetry));
    let Some((store, Found { identity, configuration })) = opened else {
        return Ok(Restored { store: None, stored: None, state: empty(), from_disk: None });
    };
    let restored = configuration.and_then(|(configuration, saved)| {
        State::restore(&args.id(), declared(), &configuration)
            .map_err(|refused| state::report(telemetry, "configuration", &refused))
            .map(|state| (state, saved))
            .ok()
    });
    let stored = match identity {
        // Without a configuration nobody else says whom to trust when the control plane is called.
        Some(identity) if restored.is_none() => {
            let domain = identity.svid.identity.id.trust_domain();
            match enrolment.trust.set_roots(domain, &identity.roots) {
                Ok(()) => Some(identity),
                Err(error) => {
                    let refused = state::Refused::Content(format!("its roots: {error}"));
                    state::report(telemetry, "identity", &refused);
                    None
                }
            }
        }
        other => other,
    };
    let (state, from_disk) = match restored {
        Some((state, saved)) => {
            let age = state::duration(SystemTime::now().duration_since(saved).unwrap_or_default());
            tracing::info!(age, "configuration from disk");
            (state, Some(saved))
        }
        None => (empty().keeping_originals(), None),
    };
    Ok(Restored { store: Some(store), stored, state, from_disk })
}
