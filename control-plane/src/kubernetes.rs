//! What a control plane in a cluster does there beside enrolment: it puts sidecars into pods as they are made
//! ([`webhook`]), and tells the API server and every namespace by which roots it is known ([`publish`]).

pub mod publish;
pub mod webhook;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use kube::{Client, Config};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    api::serve::{
        self,
        https::{Https, Source},
    },
    ca::Ca,
    config::ControlPlaneArgs,
};

/// Calls of the API server at once; one more is closed.
const CONNECTIONS: usize = 256;

/// Starts the webhook when there is to be one, and what keeps its configuration right.
///
/// # Errors
/// When it cannot listen, or the API server of the cluster is not known.
pub async fn start(args: &ControlPlaneArgs, ca: &Arc<Ca>) -> Result<()> {
    let Some(address) = args.webhook.webhook_listen else { return Ok(()) };
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("--webhook-listen {address}"))?;
    let source = Source::Own { ca: Arc::clone(ca), names: args.webhook.webhook_name.clone() };
    let https = Https::new(source, std::time::SystemTime::now())?;
    let client = client(args)?;
    let router = webhook::router(args.webhook.options());
    tracing::info!(webhook = %listener.local_addr()?, "pods are injected when they are made");
    tokio::spawn(serve::serve(listener, router, Some(https), CONNECTIONS));
    let publisher = publish::Publisher::new(client, args.webhook.webhook_configuration.clone(), Arc::clone(ca));
    tokio::spawn(publisher.clone().bundle());
    tokio::spawn(publisher.roots());
    Ok(())
}

/// The API server of the flags, or that of the pod in which this runs.
fn client(args: &ControlPlaneArgs) -> Result<Client> {
    let mut config = match &args.kubernetes_api {
        None => Config::incluster().context("--webhook-listen: this is no pod: give --kubernetes-api")?,
        Some(url) => {
            let mut config = Config::new(url.parse().with_context(|| format!("--kubernetes-api {url:?}"))?);
            config.root_cert = args.kubernetes_ca.as_ref().map(certificates).transpose()?;
            let token = args.kubernetes_token.as_ref().map(|path| path.to_string_lossy().into_owned());
            config.auth_info.token_file = token;
            config
        }
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).context("the API server of the cluster")
}

fn certificates(path: &PathBuf) -> Result<Vec<Vec<u8>>> {
    let shown = || format!("--kubernetes-ca {}", path.display());
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    Ok(found.with_context(shown)?.iter().map(|certificate| certificate.to_vec()).collect())
}
