//! The command line: every flag of every command that is not the control plane's or the sidecar's own.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    analyze::AnalyzeArgs,
    apply::ApplyArgs,
    certs::{CertsArgs, ConfigArgs},
    check::CheckArgs,
    delete::DeleteArgs,
    describe::DescribeArgs,
    diff::DiffArgs,
    drain::DrainArgs,
    edit::EditArgs,
    embedded::{ControlPlaneArgs, SidecarArgs},
    endpoints::EndpointsArgs,
    explain::ExplainArgs,
    get::GetArgs,
    history::{HistoryArgs, RollbackArgs},
    inject::{InjectArgs, UninjectArgs},
    install::InstallArgs,
    ready::ReadyArgs,
    redirect::{ExcludeArgs, RedirectArgs},
    run::AppArgs,
    stat::{EdgesArgs, StatArgs},
    status::StatusArgs,
    tap::TapArgs,
    token::TokenArgs,
    top::TopArgs,
    trace::TraceArgs,
};

/// Weft, a service mesh: sidecars beside workloads, one control plane, mutual TLS everywhere.
#[derive(Debug, Parser)]
#[command(name = "weft", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once per process")]
pub enum Command {
    /// Run a whole mesh on this machine and check that it works
    Demo(DemoArgs),
    /// Run the control plane
    ControlPlane(ControlPlaneArgs),
    /// Run a sidecar
    Sidecar(SidecarArgs),
    /// Start an app with a sidecar beside it
    Run(RunArgs),
    /// Make the objects of files so; exit code 3 when the server warns
    Apply(ApplyArgs),
    /// List objects
    Get(GetArgs),
    /// Show an object with its conditions, what is attached to it, its endpoints and its history
    Describe(DescribeArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Show what applying files would change; exit code 1 when something would, 0 when nothing
    Diff(DiffArgs),
    /// Change an object in $EDITOR
    Edit(EditArgs),
    /// Show who changed what and why, or verify that the log is whole
    History(HistoryArgs),
    /// Make the objects what they were at a revision
    Rollback(RollbackArgs),
    /// Check resource files without a server; exit code 1 for errors, 3 for warnings
    Analyze(AnalyzeArgs),
    /// Tell which rule a request meets, and why
    Explain(ExplainArgs),
    /// Show what every sidecar holds against what it should hold
    Status(StatusArgs),
    /// Show where the requests for a service may go
    Endpoints(EndpointsArgs),
    /// Show the certificates of the sidecars; rotate and revoke them
    Certs(CertsArgs),
    /// Show what one sidecar holds, type by type
    Config(ConfigArgs),
    /// Look for what is wrong with the mesh, or with this machine before there is one
    Check(CheckArgs),
    /// Let a sidecar turn callers away before its app is stopped
    Drain(DrainArgs),
    /// Tell by the exit code whether a sidecar is ready, for health checks of containers
    Ready(ReadyArgs),
    /// Put a sidecar into the pods of manifests, or beside the services of a compose file, and print them
    Inject(InjectArgs),
    /// Print what a Kubernetes cluster needs to have a mesh
    Install(InstallArgs),
    /// Take out of manifests what inject put in, and print them
    Uninject(UninjectArgs),
    /// Tokens of operators, and those with which workloads get their first certificate
    Token(TokenArgs),
    /// Show how well each service answers, how fast and how secured
    Stat(StatArgs),
    /// Show who talks to whom, how well, and whether over mutual TLS
    Edges(EdgesArgs),
    /// Show requests as they end
    Tap(TapArgs),
    /// Watch services and edges on a terminal
    Top(TopArgs),
    /// List the newest traces, or draw one
    Trace(TraceArgs),
    /// Redirect traffic of this machine to a sidecar (Linux, root)
    Redirect(RedirectArgs),
    /// Print a completion script
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// One of the demo's services
    #[command(hide = true)]
    DemoService(ServiceArgs),
    /// Becomes the app of `weft run`
    #[command(hide = true)]
    App(AppArgs),
    /// Becomes a program inside a cgroup; a step of `weft run --transparent`
    #[command(hide = true)]
    EnterCgroup(EnterArgs),
}

/// Flags of `weft demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// How long the load runs, at least 8s
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub duration: Duration,
    /// Form of the report
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: DemoOutput,
    /// Where spans go, OTLP over gRPC [default: a Jaeger on this machine, else the demo's own control plane]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Keep the mesh running after the report, until Ctrl-C, and keep its files
    #[arg(long)]
    pub keep: bool,
}

/// Forms of the demo's report.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum DemoOutput {
    /// One JSON object
    Json,
    /// For people
    Text,
}

/// Flags of `weft run`; most go to the sidecar as they are.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of the app; the instance registers as NAME-<5 random characters> with the label app=NAME
    #[arg(
        long,
        required = false,
        required_unless_present = "config",
        default_value_if("config", clap::builder::ArgPredicate::IsPresent, "")
    )]
    pub name: String,
    /// File of these flags in YAML, under their names without the dashes, and `command`; flags and environment win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Variables for the app, NAME=VALUE on each line
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Namespace of the workload
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// Service account, part of the identity [default: NAME]
    #[arg(long)]
    pub service_account: Option<String>,
    /// A port of the app: [NAME:]PORT[/http|http2|grpc|tcp]
    #[arg(long)]
    pub port: Vec<String>,
    /// A label of the workload: K=V
    #[arg(long)]
    pub label: Vec<String>,
    /// A service the app calls: SVC[.NS][:PORT]=LOCALPORT
    #[arg(long)]
    pub upstream: Vec<Upstream>,
    /// Where the sidecar listens for calls by Host [default: a free port]
    #[arg(long)]
    pub outbound_listen: Option<SocketAddr>,
    /// Where the sidecar listens for other sidecars [default: a free port]
    #[arg(long)]
    pub mesh_listen: Option<SocketAddr>,
    /// Where the sidecar's admin server listens [default: a free port]
    #[arg(long)]
    pub admin_listen: Option<SocketAddr>,
    /// A front of an app port for callers without a sidecar, until the mode is strict: ADDR=PORT
    #[arg(long, value_name = "ADDR=PORT")]
    pub inbound_listen: Vec<String>,
    /// Where the app runs, so that near endpoints are preferred: REGION[/ZONE] or /ZONE [default: unknown]
    #[arg(long, value_name = "REGION/ZONE", env = "WEFT_LOCALITY")]
    pub locality: Option<String>,
    /// Address of the control plane [default: 127.0.0.1:15012]
    #[arg(long, env = "WEFT_XDS")]
    pub xds: Option<String>,
    /// Token file for the first certificate: weft token create --service-account, or a Kubernetes token
    #[arg(long, env = "WEFT_TOKEN_FILE")]
    pub token: Option<PathBuf>,
    /// Roots by which the control plane is known, PEM [default: those in the token file]
    #[arg(long, value_name = "FILE", env = "WEFT_ROOTS")]
    pub roots: Option<PathBuf>,
    /// Directory of this instance alone, where its name, addresses, configuration and certificate are kept, so that it
    /// comes back as the same one, also without the control plane [default: nothing is kept]
    #[arg(long, value_name = "DIR", env = "WEFT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// 32 bytes (raw, hexadecimal or base64) with which the files in --state-dir are sealed
    #[arg(long, value_name = "FILE", env = "WEFT_STATE_KEY_FILE", requires = "state_dir")]
    pub state_key: Option<PathBuf>,
    /// Kept configuration that was last right longer ago is not used [default: 7d]
    #[arg(long, value_name = "TIME", requires = "state_dir")]
    pub state_max_age: Option<String>,
    /// How the app is asked whether it is well; while it is not, callers go elsewhere: tcp, http:[PORT]/PATH,
    /// grpc[:SERVICE] or exec:COMMAND [default: tcp, all ports]
    #[arg(long, value_name = "PROBE")]
    pub probe: Option<String>,
    /// How often the app is asked [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub probe_interval: Option<String>,
    /// An answer that takes longer is none [default: 500ms]
    #[arg(long, value_name = "TIME")]
    pub probe_timeout: Option<String>,
    /// So many failures in a row and the app leaves discovery [default: 3]
    #[arg(long, value_name = "N")]
    pub probe_threshold: Option<String>,
    /// How long the app waits for the sidecar to be ready before the whole fails; 0 for ever
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = any_duration)]
    pub ready_timeout: Duration,
    /// Seconds for which callers are still served after a stop was asked for, until all have heard of it [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub lame_duck: Option<u64>,
    /// Seconds after which the app is told to stop though it still serves somebody
    #[arg(long, value_name = "SECONDS", default_value = "25")]
    pub drain_timeout: u64,
    /// Redirect all of the app's traffic: it calls services by name or address, and its ports are called through the
    /// sidecar (Linux, root, nftables and cgroup v2)
    #[arg(long)]
    pub transparent: bool,
    /// With --transparent, what is left alone
    #[command(flatten)]
    pub exclude: ExcludeArgs,
    /// The app and its arguments
    #[arg(last = true, required_unless_present = "config")]
    pub command: Vec<OsString>,
}

/// Arguments of the hidden `weft enter-cgroup`.
#[derive(Args, Clone, Debug)]
pub struct EnterArgs {
    /// Directory of the cgroup
    pub cgroup: PathBuf,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// `SVC[.NS][:PORT]=LOCALPORT`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    /// The whole flag, as the sidecar takes it.
    pub flag: String,
    /// The service's name without namespace and port.
    pub service: String,
    /// Its namespace, if given.
    pub namespace: Option<String>,
    /// Its port, if given.
    pub port: Option<u16>,
    /// The port on this machine.
    pub local_port: u16,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(flag: &str) -> Result<Self, String> {
        let (target, local) = flag.split_once('=').ok_or("expected SVC[.NS][:PORT]=LOCALPORT, such as catalog=9001")?;
        let (host, port) = target.split_once(':').map_or((target, None), |(host, port)| (host, Some(port)));
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let wrong = |port: &str| format!("service port {port:?}: must be 1 to 65535");
        let port = port.map(|port| number(port).ok_or_else(|| wrong(port))).transpose()?;
        let (service, namespace) = host.split_once('.').map_or((host, None), |(name, rest)| (name, Some(rest)));
        let namespace = namespace.map(|namespace| namespace.split('.').next().unwrap_or_default().to_owned());
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if service.is_empty() || !service.chars().all(label) {
            return Err(format!("service name {service:?}: must be lower-case letters, digits and '-'"));
        }
        let local_port = number(local).ok_or_else(|| format!("local port {local:?}: must be 1 to 65535"))?;
        Ok(Self { flag: flag.to_owned(), service: service.to_owned(), namespace, port, local_port })
    }
}

/// Flags of the hidden `weft demo-service`.
#[derive(Args, Clone, Debug)]
pub struct ServiceArgs {
    /// Which service
    #[arg(value_enum)]
    pub service: Service,
    /// Where it listens
    #[arg(long)]
    pub listen: SocketAddr,
    /// What the catalog reports as its version
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// What the catalog reports as its replica
    #[arg(long, default_value = "1")]
    pub replica: String,
    /// Where the storefront reaches the catalog
    #[arg(long, env = "WEFT_UPSTREAM_CATALOG", default_value = "127.0.0.1:9001", hide_env_values = true)]
    pub catalog: SocketAddr,
    /// Where the storefront reaches orders
    #[arg(long, env = "WEFT_UPSTREAM_ORDERS", default_value = "127.0.0.1:9002", hide_env_values = true)]
    pub orders: SocketAddr,
    /// Where orders reaches payments
    #[arg(long, env = "WEFT_UPSTREAM_PAYMENTS", default_value = "127.0.0.1:9003", hide_env_values = true)]
    pub payments: SocketAddr,
    /// Where orders reaches the ledger's journal
    #[arg(long, env = "WEFT_UPSTREAM_LEDGER", default_value = "127.0.0.1:9004", hide_env_values = true)]
    pub ledger: SocketAddr,
    /// Where the ledger takes entries, and where orders reaches that
    #[arg(long)]
    pub entries: Option<SocketAddr>,
}

/// The demo's services.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Service {
    Catalog,
    Ledger,
    Orders,
    Payments,
    Storefront,
}

/// `500ms`, `20s`, `2m`, `1h`, or bare seconds.
pub fn any_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "expected a number and a unit, such as 20s".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        unit => Err(format!("unit {unit:?}: use ms, s, m or h")),
    }
}

/// The demo needs 8 s for its stages.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = any_duration(text)?;
    if duration < Duration::from_secs(8) {
        return Err("shorter than the stages need; use 8s or more".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests;
