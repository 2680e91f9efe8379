//! How operators are let in: with `--dev` the local user over plain HTTP on loopback, otherwise holders of tokens over
//! TLS, wherever it listens.

use std::{net::SocketAddr, path::Path, sync::Arc, time::SystemTime};

use anyhow::{Result, bail};
use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{
        access::{Access, tokens::Tokens},
        serve::https::{Https, Source, names},
    },
    ca::Ca,
    config::ControlPlaneArgs,
};

/// Refuses flags that would open the API.
///
/// # Errors
/// With `--dev` on an address that others reach.
pub fn check(args: &ControlPlaneArgs) -> Result<()> {
    if args.dev && !args.api_listen.ip().is_loopback() {
        bail!(
            "--dev --api-listen {}: with --dev the API needs no token, so it listens on loopback only; leave out --dev",
            args.api_listen
        );
    }
    Ok(())
}

/// Who is let in, and by which certificate the API is known; none for plain HTTP.
///
/// # Errors
/// When tokens or certificates cannot be read or made.
pub fn access(
    args: &ControlPlaneArgs,
    data_dir: &Path,
    ca: &Arc<Ca>,
    listening: SocketAddr,
) -> Result<(Access, Option<Https>)> {
    let root = ca.write_root()?;
    if args.dev {
        return Ok((Access::dev(), None));
    }
    let (tokens, made) = Tokens::open(data_dir, Timestamp::now())?;
    if let Some(file) = made {
        let (token, root) = (file.display(), root.display());
        tracing::info!(%token, %root, "there was no administrator's token, so one was made: keep that file safe");
    }
    let source = match (&args.api_tls_cert, &args.api_tls_key) {
        (Some(certificate), Some(key)) => Source::Files { certificate: certificate.clone(), key: key.clone() },
        _ => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            Source::Own { ca: Arc::clone(ca), names: names(listening, &host, &args.api_name) }
        }
    };
    Ok((Access::tokens(tokens), Some(Https::new(source, SystemTime::now())?)))
}
