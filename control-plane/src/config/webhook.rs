//! Flags of the admission webhook, which only a control plane in a cluster has.

use std::net::SocketAddr;

use crate::inject::Options;

/// How pods get their sidecars when they are made.
#[derive(Clone, Debug, clap::Args)]
pub struct WebhookArgs {
    /// Where the API server of the cluster sends pods to be injected, over TLS by the mesh's authority [default: nowhere]
    #[arg(long, value_name = "ADDR", requires = "webhook_name")]
    pub webhook_listen: Option<SocketAddr>,
    /// Name in its certificate, such as weft-webhook.weft-system.svc; may be repeated
    #[arg(long, value_name = "NAME", requires = "webhook_listen")]
    pub webhook_name: Vec<String>,
    /// The MutatingWebhookConfiguration whose caBundle is kept right
    #[arg(long, value_name = "NAME", default_value = "weft")]
    pub webhook_configuration: String,
    /// Image of the sidecars that are injected [default: weft:<this version>]
    #[arg(long, value_name = "IMAGE", requires = "webhook_listen")]
    pub inject_image: Option<String>,
    /// Image of the init containers that redirect traffic [default: weft-redirect:<this version>]
    #[arg(long, value_name = "IMAGE", requires = "webhook_listen")]
    pub inject_redirect_image: Option<String>,
    /// Where injected sidecars find the control plane [default: weft-control-plane.weft-system.svc:15012]
    #[arg(long, value_name = "HOST:PORT", requires = "webhook_listen")]
    pub inject_xds: Option<String>,
}

impl WebhookArgs {
    /// What is put into pods.
    #[must_use]
    pub fn options(&self) -> Options {
        let defaults = Options::of("weft-system");
        let or = |flag: &Option<String>, default: String| flag.clone().unwrap_or(default);
        Options {
            image: or(&self.inject_image, defaults.image),
            redirect_image: or(&self.inject_redirect_image, defaults.redirect_image),
            xds: or(&self.inject_xds, defaults.xds),
            ..defaults
        }
    }
}
