//! Static configuration of a sidecar: flags, their parsers, and what the workers see of them.

mod advertise;
pub mod pod;
mod redirect;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

pub use advertise::Advertise;
pub use pod::PodArgs;
pub use redirect::RedirectPorts;
use weft_policy::model::{Locality, ObjectName};
use weft_proto::v1;

use crate::probe::ProbeArgs;

/// Stands next to one service and carries its traffic.
#[derive(Clone, Debug, clap::Args)]
pub struct SidecarArgs {
    /// Name of this instance, unique in the namespace
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Namespace of the workload
    #[arg(long, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// Service account of the identity [default: the name]
    #[arg(long, value_name = "SA")]
    pub service_account: Option<String>,
    /// Port of the app: [NAME:]PORT[/http|http1|http2|grpc|tcp|tls]
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<Port>,
    /// Label of the workload
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Service that the app calls at a local port: SVC[.NS][:PORT]=LOCALPORT
    #[arg(long = "upstream", value_name = "UPSTREAM")]
    pub upstreams: Vec<UpstreamFlag>,
    /// Where the app calls services by Host
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub outbound_listen: SocketAddr,
    /// Where other sidecars call
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub mesh_listen: SocketAddr,
    /// Health, metrics and configuration of this sidecar
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub admin_listen: SocketAddr,
    /// Plaintext front of an app port: ADDR=PORT
    #[arg(long = "inbound-listen", value_name = "ADDR=PORT", value_parser = inbound)]
    pub inbound_listen: Vec<(SocketAddr, u16)>,
    /// Take what is redirected here: the app's calls and its DNS, and calls to its ports from outside (Linux; see `weft
    /// redirect`)
    #[arg(long)]
    pub transparent: bool,
    /// Where to take it: outbound=PORT,dns=PORT,APPPORT=PORT [default: free ports], and rest=PORT for calls to ports that
    /// nobody declared [default: they are not taken]
    #[arg(long, value_name = "PORTS", requires = "transparent")]
    pub redirect_ports: Option<RedirectPorts>,
    /// Mark of every socket that this sidecar opens, so that rules of redirection leave it alone (needs CAP_NET_ADMIN)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub mark: Option<u32>,
    /// Address at which peers reach this workload; auto: that from which this machine reaches the control plane [default:
    /// that of --mesh-listen]
    #[arg(long, value_name = "IP|auto")]
    pub advertise: Option<Advertise>,
    /// Where this workload runs, so that near endpoints are preferred: REGION[/ZONE] or /ZONE [default: unknown]
    #[arg(long, value_name = "REGION/ZONE", env = "WEFT_LOCALITY", value_parser = locality)]
    pub locality: Option<Locality>,
    /// Discovery address of the control plane
    #[arg(long, value_name = "URL", env = "WEFT_XDS", default_value = "127.0.0.1:15012")]
    pub xds: String,
    /// Enrolment token, or a projected token of Kubernetes; read at each enrolment [default: the development token of a
    /// control plane on this machine]
    #[arg(long, value_name = "FILE", env = "WEFT_TOKEN_FILE")]
    pub token: Option<PathBuf>,
    /// Roots by which the control plane is known at enrolment, PEM [default: those in the token file]
    #[arg(long, value_name = "FILE", env = "WEFT_ROOTS")]
    pub roots: Option<PathBuf>,
    /// Directory of this sidecar alone, where configuration and certificate are kept so that it can start without the
    /// control plane and without a new token [default: nothing is kept]
    #[arg(long, value_name = "DIR", env = "WEFT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// 32 bytes (raw, hexadecimal or base64) with which the files in --state-dir are sealed
    #[arg(long, value_name = "FILE", env = "WEFT_STATE_KEY_FILE", requires = "state_dir")]
    pub state_key: Option<PathBuf>,
    /// Kept configuration that was last right longer ago is not used: 90s, 45m, 12h or 7d
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = age)]
    pub state_max_age: Duration,
    /// Worker threads [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// The whole stop takes at most this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "25", value_parser = seconds)]
    pub drain_timeout: Duration,
    /// Seconds for which new connections are still taken after a stop was asked for
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub lame_duck: Duration,
    /// Print addresses and readiness as JSON lines on stdout
    #[arg(long)]
    pub announce: bool,
    /// Where the access log goes, appended [default: standard error]
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Log filter
    #[arg(long, value_name = "LEVEL", env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    #[command(flatten)]
    pub pod: PodArgs,
    #[command(flatten)]
    pub probe: ProbeArgs,
    /// Process that has started this one: when it is gone, so is this
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<i32>,
}

/// What the data path needs to know.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// Namespace of the workload, for short host names.
    pub namespace: String,
}

/// A declared upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    /// The service.
    pub service: ObjectName,
    /// The service port; `None`: its first.
    pub port: Option<u16>,
}

/// A `--upstream` as written; the namespace may be missing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamFlag {
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
    /// Where the app calls.
    pub local: u16,
}

/// A `--port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Port {
    /// Where the app listens.
    pub port: u16,
    /// Port name.
    pub name: String,
    /// Declared protocol.
    pub protocol: v1::Protocol,
}

impl SidecarArgs {
    /// `namespace/name`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The service account, given or by default.
    #[must_use]
    pub fn account(&self) -> &str {
        self.service_account.as_deref().unwrap_or(&self.name)
    }

    /// `host:port` of the control plane.
    #[must_use]
    pub fn xds_address(&self) -> &str {
        self.xds.strip_prefix("https://").unwrap_or(&self.xds).trim_end_matches('/')
    }

    /// Where this workload is; empty: unknown.
    #[must_use]
    pub fn locality(&self) -> Locality {
        self.locality.clone().unwrap_or_default()
    }

    /// Where peers reach this workload; before `auto` is found out, nowhere but on this machine.
    #[must_use]
    pub fn advertised(&self) -> IpAddr {
        match (self.advertise, self.mesh_listen.ip()) {
            (Some(Advertise::Ip(ip)), _) => ip,
            (_, ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            (_, ip) => ip,
        }
    }

    /// The same address to listen on, where all of IPv4 is meant and peers come by IPv6: then all of both.
    #[must_use]
    pub fn all_families(&self, address: SocketAddr) -> SocketAddr {
        if address.ip() == Ipv4Addr::UNSPECIFIED && self.advertised().is_ipv6() {
            return SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        }
        address
    }
}

impl UpstreamFlag {
    /// The upstream, seen from a namespace.
    ///
    /// # Errors
    /// When name and namespace are no DNS labels.
    pub fn resolve(&self, own: &str) -> Result<Upstream, String> {
        let id = format!("{}/{}", self.namespace.as_deref().unwrap_or(own), self.name);
        let service =
            ObjectName::parse(&id).ok_or_else(|| format!("--upstream {id:?}: must be lower-case DNS labels"))?;
        Ok(Upstream { service, port: self.port })
    }
}

impl FromStr for UpstreamFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, local) = text.split_once('=').ok_or("expected SVC[.NS][:PORT]=LOCALPORT")?;
        let (service, number) =
            service.split_once(':').map_or((service, None), |(service, number)| (service, Some(number)));
        let (name, namespace) =
            service.split_once('.').map_or((service, None), |(name, ns)| (name, Some(ns.to_owned())));
        if name.is_empty() {
            return Err("expected a service name before the port".into());
        }
        Ok(Self { name: name.into(), namespace, port: number.map(port).transpose()?, local: port(local)? })
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, protocol) = text.split_once('/').map_or((text, None), |(rest, protocol)| (rest, Some(protocol)));
        let (name, number) = rest.split_once(':').unwrap_or(("", rest));
        let protocol = match protocol {
            None => v1::Protocol::Unspecified,
            Some("http") => v1::Protocol::Http,
            Some("http1") => v1::Protocol::Http1,
            Some("http2" | "h2c") => v1::Protocol::Http2,
            Some("grpc") => v1::Protocol::Grpc,
            Some("tcp") => v1::Protocol::Tcp,
            Some("tls") => v1::Protocol::Tls,
            Some(other) => return Err(format!("protocol {other:?}: expected http, http1, http2, grpc, tcp or tls")),
        };
        Ok(Self { port: port(number)?, name: name.into(), protocol })
    }
}

/// A port number.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|&port| port > 0).ok_or_else(|| format!("port {text:?}: expected 1 to 65535"))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

fn inbound(text: &str) -> Result<(SocketAddr, u16), String> {
    let (address, number) = text.split_once('=').ok_or("expected ADDR=PORT")?;
    let address = address.parse().map_err(|_| format!("address {address:?}: expected ip:port"))?;
    Ok((address, port(number)?))
}

/// An empty text is no locality: an empty variable in the environment means that it is not set.
fn locality(text: &str) -> Result<Locality, String> {
    let (region, zone) = text.split_once('/').unwrap_or((text, ""));
    if zone.contains('/') || text.contains(char::is_whitespace) {
        return Err("expected REGION/ZONE, such as eu-west/eu-west-1a".into());
    }
    Ok(Locality { region: region.into(), zone: zone.into() })
}

/// A number with one of the units s, m, h and d; not 0.
fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?}: expected a number and a unit, such as 90s, 45m, 12h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().ok().filter(|&number| number > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number =
        text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| "expected seconds, such as 25".to_owned())?;
    Ok(Duration::from_secs(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_names_service_namespace_port_and_local_port() {
        let flag: UpstreamFlag = "catalog.shop:80=9001".parse().expect("valid");
        assert_eq!(flag.local, 9001);
        let upstream = flag.resolve("default").expect("valid");
        assert_eq!((upstream.service.as_str(), upstream.port), ("shop/catalog", Some(80)));
        let short: UpstreamFlag = "catalog=9001".parse().expect("valid");
        assert_eq!(short.resolve("default").expect("valid").service.as_str(), "default/catalog");
    }

    #[test]
    fn bad_flags_say_what_was_expected() {
        assert_eq!("catalog".parse::<UpstreamFlag>(), Err("expected SVC[.NS][:PORT]=LOCALPORT".into()));
        assert_eq!("catalog=0".parse::<UpstreamFlag>(), Err("port \"0\": expected 1 to 65535".into()));
        assert_eq!("80/x".parse::<Port>(), Err("protocol \"x\": expected http, http1, http2, grpc, tcp or tls".into()));
    }

    #[test]
    fn a_locality_is_a_region_a_zone_or_both() {
        let parsed = |text| locality(text).map(|Locality { region, zone }| (region.into(), zone.into()));
        let pair = |region: &str, zone: &str| Ok((region.to_owned(), zone.to_owned()));
        assert_eq!(parsed("eu/eu-1"), pair("eu", "eu-1"));
        assert_eq!(parsed("eu"), pair("eu", ""));
        assert_eq!(parsed("/eu-1"), pair("", "eu-1"));
        assert_eq!(parsed(""), pair("", ""));
        assert!(parsed("eu/eu-1/rack").is_err());
    }

    #[test]
    fn an_age_has_a_unit() {
        assert_eq!(age("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(age("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["", "7", "d", "0d", "-1d", "7w", "7\u{e9}"] {
            assert!(age(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_port_has_an_optional_name_and_protocol() {
        let port: Port = "web:8080/http".parse().expect("valid");
        assert_eq!((port.port, port.name.as_str(), port.protocol), (8080, "web", v1::Protocol::Http));
        assert_eq!("8080".parse::<Port>().expect("valid").protocol, v1::Protocol::Unspecified);
    }
}
