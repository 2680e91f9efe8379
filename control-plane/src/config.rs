//! Flags of the control plane.

pub mod source;
pub mod webhook;

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

pub use source::{SourceArgs, SourceKind};
pub use webhook::WebhookArgs;

use crate::ca::LIFETIMES;

/// Pushes configuration, discovery and trust to the sidecars.
#[derive(Clone, Debug, clap::Args)]
pub struct ControlPlaneArgs {
    /// Where the certificate authority lives [default: $XDG_DATA_HOME/weft or ~/.local/share/weft]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Operator API: TLS and tokens; with --dev plain HTTP, loopback only
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub api_listen: SocketAddr,
    /// Certificate chain of the operator API, PEM, read again when it changes [default: by the mesh's own authority]
    #[arg(long, value_name = "FILE", requires = "api_tls_key", conflicts_with = "dev")]
    pub api_tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "api_tls_cert", conflicts_with = "dev")]
    pub api_tls_key: Option<PathBuf>,
    /// One more name or address in the certificate of the operator API; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "api_tls_cert")]
    pub api_name: Vec<String>,
    /// Connections to the operator API; one more is closed
    #[arg(long, value_name = "N", default_value = "4096")]
    pub api_max_connections: usize,
    /// Discovery and certificates for sidecars
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15012")]
    pub xds_listen: SocketAddr,
    /// New discovery streams per second; twice as many in a burst
    #[arg(long, value_name = "N", default_value = "100")]
    pub xds_admission_rate: NonZeroU32,
    /// Connections on the discovery port; one more is closed
    #[arg(long, value_name = "N", default_value = "10000")]
    pub xds_max_connections: usize,
    /// Kubernetes API server, which is asked about service account tokens of workloads that enrol [default: that of the
    /// pod in which this runs]
    #[arg(long, value_name = "URL")]
    pub kubernetes_api: Option<String>,
    /// Certificates that vouch for it, PEM [default: those of the pod]
    #[arg(long, value_name = "FILE", requires = "kubernetes_api")]
    pub kubernetes_ca: Option<PathBuf>,
    /// Token with which it is asked; it must be allowed to create tokenreviews [default: that of the pod]
    #[arg(long, value_name = "FILE", requires = "kubernetes_api")]
    pub kubernetes_token: Option<PathBuf>,
    /// Let any local workload enrol, and the local user use the API without TLS and token
    #[arg(long)]
    pub dev: bool,
    /// Let a workload register only the name and the labels that its certificate attests (weft token create --name
    /// --label), so that none gets into a Service, or under or out of a policy, by what it says of itself; tokens of
    /// Kubernetes attest neither
    #[arg(long, conflicts_with = "dev")]
    pub attested_labels_only: bool,
    /// Where spans come in (OTLP over gRPC, and protobuf over HTTP at /v1/traces) to be kept in memory for weft trace and
    /// Jaeger's query API [default: none; with --dev 127.0.0.1:4317, unless a collector listens there]
    #[arg(long, value_name = "ADDR")]
    pub otlp_listen: Option<SocketAddr>,
    /// Directory of resource files, watched
    #[arg(long, value_name = "DIR")]
    pub resources: Option<PathBuf>,
    /// Trust domain of every identity
    #[arg(long, value_name = "NAME", default_value = "weft.local")]
    pub trust_domain: String,
    /// Life of the sidecars' certificates, 10s to 90d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    pub svid_lifetime: Duration,
    /// Fetch key sets of RequestAuthentications from this host though its address is private, loopback or link-local;
    /// may be repeated
    #[arg(long, value_name = "HOST")]
    pub allow_jwks_host: Vec<String>,
    /// Root certificates for key sets, PEM, beside those of the platform
    #[arg(long, value_name = "FILE")]
    pub jwks_ca: Option<PathBuf>,
    /// Issuing certificate, PEM, followed by what lies between it and a root; read again when it changes [default: the
    /// authority in the data directory]
    #[arg(long, value_name = "FILE", requires_all = ["ca_key", "ca_roots"])]
    pub ca_cert: Option<PathBuf>,
    /// Its key, PEM, mode 0600 or stricter
    #[arg(long, value_name = "FILE", requires_all = ["ca_cert", "ca_roots"])]
    pub ca_key: Option<PathBuf>,
    /// The roots that the mesh trusts, PEM; to change them without a break, first add the new one
    #[arg(long, value_name = "FILE", requires_all = ["ca_cert", "ca_key"])]
    pub ca_roots: Option<PathBuf>,
    /// Log filter
    #[arg(long, value_name = "LEVEL", env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub webhook: WebhookArgs,
}

impl ControlPlaneArgs {
    /// The data directory, given or by default.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| ".".into())).join(".local/share");
        let base =
            || std::env::var_os("XDG_DATA_HOME").filter(|base| !base.is_empty()).map_or_else(home, PathBuf::from);
        self.data_dir.clone().unwrap_or_else(|| base().join("weft"))
    }
}

/// A number with a unit: ms, s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[split..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("expected a number with ms, s, m, h or d, such as 24h".into()),
    };
    let number: u64 = text[..split].parse().map_err(|_| "expected digits before the unit, such as 24h".to_owned())?;
    number
        .checked_mul(unit)
        .filter(|&millis| millis > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "out of range".into())
}

/// Of certificates: shorter ones cannot be renewed in time, and longer ones are too long in the wrong hands.
fn lifetime(text: &str) -> Result<Duration, String> {
    let life = duration(text)?;
    if LIFETIMES.contains(&life) { Ok(life) } else { Err("must be 10s to 90d".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_live_for_ten_seconds_to_ninety_days() {
        assert_eq!(lifetime("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(lifetime("90d"), Ok(Duration::from_secs(90 * 86_400)));
        for bad in ["9999ms", "91d", "2161h", "10"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "10", "s", "1.5h", "-1s", "0s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
