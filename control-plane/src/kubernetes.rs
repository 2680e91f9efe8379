//! What a control plane in a cluster does there beside enrolment: it takes configuration and endpoints from the API server
//! ([`mirror`]), puts sidecars into pods as they are made ([`webhook`]), and tells the API server and every namespace by
//! which roots it is known ([`publish`]).

mod follow;
pub mod lease;
pub mod mirror;
pub mod publish;
mod record;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
mod watched;
pub mod webhook;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use kube::{
    Client, Config, Error,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    api::{
        kinds::KINDS,
        serve::{
            self,
            https::{Https, Source},
        },
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
    let client = client(args).await.context("--webhook-listen")?;
    let router = webhook::router(args.webhook.options());
    tracing::info!(webhook = %listener.local_addr()?, "pods are injected when they are made");
    tokio::spawn(serve::serve(listener, router, Some(https), CONNECTIONS));
    let publisher = publish::Publisher::new(client, args.webhook.webhook_configuration.clone(), Arc::clone(ca));
    tokio::spawn(publisher.clone().bundle());
    tokio::spawn(publisher.roots());
    Ok(())
}

/// The API server of the flags, or that of the pod in which this runs.
///
/// # Errors
/// When there is none, or a file of it cannot be used.
pub async fn client(args: &ControlPlaneArgs) -> Result<Client> {
    let mut config = match (&args.source.kubeconfig, &args.kubernetes_api) {
        (Some(path), _) => {
            let shown = || format!("--kubeconfig {}", path.display());
            let file = Kubeconfig::read_from(path).with_context(shown)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(shown)?
        }
        (None, None) => Config::incluster().context("this is no pod: give --kubeconfig or --kubernetes-api")?,
        (None, Some(url)) => {
            let mut config = Config::new(url.parse().with_context(|| format!("--kubernetes-api {url:?}"))?);
            config.root_cert = args.kubernetes_ca.as_ref().map(certificates).transpose()?;
            let token = args.kubernetes_token.as_ref().map(|path| path.to_string_lossy().into_owned());
            config.auth_info.token_file = token;
            config
        }
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // Whoever asks tries again by itself.
    config.default_retry = false;
    Client::try_from(config).context("the API server of the cluster")
}

fn certificates(path: &PathBuf) -> Result<Vec<Vec<u8>>> {
    let shown = || format!("--kubernetes-ca {}", path.display());
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    Ok(found.with_context(shown)?.iter().map(|certificate| certificate.to_vec()).collect())
}

/// What the control plane does at the API server, as rules of RBAC have it: API group, resource, verb.
#[must_use]
pub fn needs() -> BTreeSet<(&'static str, String, &'static str)> {
    let mut found = BTreeSet::new();
    let mut add = |group, resource: &str, verbs: &[&'static str]| {
        found.extend(verbs.iter().map(|verb| (group, resource.to_owned(), *verb)));
    };
    for watched in watched::all() {
        add(watched.group, watched.plural, &["list", "watch"]);
    }
    for kind in KINDS.iter().filter(|kind| kind.has_status() && !kind.strategic()) {
        add(kind.group, &format!("{}/status", kind.plural), &["patch"]);
    }
    add("coordination.k8s.io", "leases", &["create", "get", "update"]);
    add("authentication.k8s.io", "tokenreviews", &["create"]);
    add("", "configmaps", &["create", "get", "update"]);
    add("admissionregistration.k8s.io", "mutatingwebhookconfigurations", &["get", "update"]);
    found
}

/// Why the API server did not do something, and what to do about it.
fn told(verb: &str, resource: &str, error: &Error) -> String {
    match error {
        Error::Api(status) if status.code == 403 => format!(
            "{verb} {resource}: refused by the API server: {}; allow the verb {verb} on {resource} in the ClusterRole of the \
             control plane (weft install prints one)",
            status.message
        ),
        Error::Api(status) if status.code == 401 => format!(
            "{verb} {resource}: the API server does not know who asks: {}; check the token or the kubeconfig",
            status.message
        ),
        Error::Api(status) => {
            format!("{verb} {resource}: the API server answers {} {}: {}", status.code, status.reason, status.message)
        }
        error => format!("{verb} {resource}: {}; is the API server there?", chain(error)),
    }
}

/// The error with its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let own = error.to_string();
        // Some say what their cause says.
        if !text.ends_with(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    text
}
