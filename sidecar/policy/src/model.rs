//! The immutable model: what a sidecar knows of services, endpoints and its own workload. Built only by
//! `convert`, read by everyone. Names are those of the wire contract; everything here is already valid.

mod access;
mod filter;
mod jwt;
mod policy;
mod session;
mod telemetry;
mod trust;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::HeaderName;

pub use self::{
    access::{
        Access, Action, AuthorizationPolicy, AuthorizationRule, Condition, ConditionGroup, ConditionKind, ConditionSet,
        HostMatch, IdentityMatch, Network, PathPattern, Segment, TextMatch, TlsMode, rule_header,
    },
    filter::{Allowed, Cors, Filters, HeaderModifier, Mirror, Origin, PathModifier, Redirect, Rewrite, Scheme},
    jwt::{InboundAuthentication, Issuer, Key, KeyMaterial, RequestAuthentication, SignatureAlgorithm},
    policy::{
        Abort, Algorithm, BackendPolicy, BreakOn, CircuitBreaker, Connection, Fault, HashOn, InboundLimit, Limits,
        LoadBalancing, OutlierDetection, Place, RateKey, RateLimit, RequestPolicy, Retry, RetryBudget,
    },
    session::{Carrier, Session, SessionKey},
    telemetry::{AccessLogFormat, AccessLogMode, Telemetry},
    trust::{Revocation, TrustBundle},
};
use crate::{SpiffeId, pattern::Pattern};

/// `namespace/name` of a service or workload. Cheap to clone, ordered by text.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName(Arc<str>);

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// gRPC, which is HTTP/2.
    Grpc,
    /// HTTP of either version.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Opaque bytes.
    Tcp,
    /// TLS of the application's own: opaque.
    Tls,
    /// Not declared: detected from the first bytes.
    #[default]
    Undeclared,
}

/// A service and its compiled outbound behaviour.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// `namespace/name`.
    pub id: ObjectName,
    /// Lower-case host names without a port.
    pub hostnames: Vec<Arc<str>>,
    /// Virtual addresses.
    pub virtual_ips: Vec<IpAddr>,
    /// Unique by `port`, at least one, in the order of the resource.
    pub ports: Vec<ServicePort>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Where clients call.
    pub port: u16,
    /// Name, may be empty.
    pub name: Box<str>,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Attached routes; `None`: every request follows `direct`.
    pub routing: Option<Routing>,
    /// To the service's own endpoints, without filters.
    pub direct: Arc<RouteRule>,
    /// How the endpoints behind this port are used, whichever route leads to them.
    pub backend: Arc<BackendPolicy>,
}

/// Rules and the matches that lead to them, in order of precedence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// What to do.
    pub rules: Vec<Arc<RouteRule>>,
    /// When; the first that matches wins. `rule` is always a valid index.
    pub matches: Vec<RouteMatch>,
}

/// One match of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// Index into [`Routing::rules`].
    pub rule: usize,
    /// Path condition.
    pub path: PathMatch,
    /// Method, if it matters.
    pub method: Option<http::Method>,
    /// Headers, all of which must match.
    pub headers: Vec<KeyMatch<HeaderName>>,
    /// Query parameters, all of which must match.
    pub query: Vec<KeyMatch<Box<str>>>,
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyMatch<N> {
    /// Of the field or parameter.
    pub name: N,
    /// What its whole value must be.
    pub value: ValueMatch,
}

/// A condition on a whole value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ValueMatch {
    /// These bytes.
    Exact(Box<str>),
    /// Matches this.
    Regex(Pattern),
}

/// A condition on the path, percent-encoding as sent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// Exactly this.
    Exact(Box<str>),
    /// This and everything below it, by segment. Stored without a trailing slash unless it is `/`.
    Prefix(Box<str>),
    /// The whole path matches this.
    Regex(Pattern),
}

/// What a route does with the requests that reach it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteRule {
    /// `namespace/route#rule`; empty for the rule of a port without routes.
    pub name: Box<str>,
    /// The name as sidecars tell it to each other.
    pub tag: Option<http::HeaderValue>,
    /// Where to; empty means 500, unless a filter answers.
    pub backends: Vec<WeightedBackend>,
    /// Sum of the backends' weights.
    pub total_weight: u64,
    /// How its requests are made. Rules share it.
    pub requests: Arc<RequestPolicy>,
    /// What is done to them.
    pub filters: Filters,
    /// Which of them go to one endpoint.
    pub session: Option<Box<Session>>,
}

/// A weighted reference to a service port.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    /// `None`: an invalid reference, answered 500.
    pub target: Option<Target>,
    /// Relative weight.
    pub weight: u32,
    /// For its requests only, after those of the rule.
    pub filters: Filters,
}

/// A port of a service.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The service.
    pub service: ObjectName,
    /// The service port.
    pub port: u16,
}

impl std::fmt::Display for Target {
    /// `namespace/service:port`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// At most 100 endpoints of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// The service.
    pub service: ObjectName,
    /// Number of this slice.
    pub index: u32,
    /// How many there are; only slice 0 says it.
    pub slice_count: Option<u32>,
    /// The endpoints. What several of them have in common (ports, locality, identity) is held once.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// A replica of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Address without a port.
    pub address: IpAddr,
    /// Service port to the port at the endpoint.
    pub ports: PortMap,
    /// How to reach it over the mesh; `None`: plaintext.
    pub mesh: Option<MeshAddress>,
    /// Relative weight, at least 1.
    pub weight: u32,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// In the balancing set.
    pub healthy: bool,
    /// Takes nothing new.
    pub draining: bool,
    /// The workload, if it is one of the mesh.
    pub workload: Option<ObjectName>,
}

/// Service ports and the ports at an endpoint that they lead to. Cheap to clone: endpoints share it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PortMap(Arc<[(u16, u16)]>);

/// The mesh listener of an endpoint and who must answer there.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct MeshAddress {
    /// `ip:port`.
    pub address: SocketAddr,
    /// Identity that the endpoint must prove.
    pub identity: SpiffeId,
}

/// Where an endpoint is. Empty means unknown.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
}

/// The inbound side of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadConfig {
    /// `namespace/name`.
    pub id: ObjectName,
    /// Unique by `port`.
    pub ports: Vec<InboundPort>,
    /// What is recorded of its traffic.
    pub telemetry: Telemetry,
    /// What becomes of calls that leave the mesh.
    pub outbound: OutboundTraffic,
}

/// What becomes of the app's calls to addresses that nothing in the mesh has, in transparent mode.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OutboundTraffic {
    /// They go there.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// One port of the app.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundPort {
    /// Where the app listens.
    pub port: u16,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Service ports that lead here.
    pub services: Vec<Target>,
    /// How much is let in.
    pub rate_limits: Vec<Arc<InboundLimit>>,
    /// Who is let in, whichever service was called.
    pub access: Access,
    /// Tokens of the requests; a request must satisfy all that apply to it.
    pub request_authentications: Vec<InboundAuthentication>,
}

impl PortMap {
    /// The port at the endpoint for a service port.
    #[must_use]
    pub fn get(&self, port: u16) -> Option<u16> {
        // There are a few.
        self.0.iter().find(|(from, _)| *from == port).map(|(_, to)| *to)
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    /// Of a service port that comes twice the last one counts.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
    }
}

impl ObjectName {
    /// Joins a namespace and a name that are already valid.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// Parses `namespace/name`: two DNS labels of 1 to 63 characters (a name may be up to 253, with dots).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let label = |part: &str, max: usize, dots: bool| {
            !part.is_empty()
                && part.len() <= max
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        (label(namespace, 63, false) && label(name, 253, true)).then(|| Self(text.into()))
    }

    /// The part before the slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// `namespace/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Protocol {
    /// Never parsed as HTTP.
    #[must_use]
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Spoken as HTTP/2 to the application.
    #[must_use]
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Grpc | Self::Http2)
    }

    /// Word for tables, logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Undeclared => "undeclared",
        }
    }
}

impl Service {
    /// The port with this number.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Targets of all routes, mirrors included: the services that must be known before this version may be used.
    pub fn referenced(&self) -> impl Iterator<Item = &Target> {
        let rules = self.ports.iter().filter_map(|port| port.routing.as_ref()).flat_map(|routing| &routing.rules);
        rules.flat_map(|rule| {
            let backends = rule.backends.iter();
            let own = backends.clone().filter_map(|backend| backend.target.as_ref());
            let inner = backends.flat_map(|backend| &backend.filters.mirrors).map(|mirror| &mirror.target);
            own.chain(inner).chain(rule.filters.mirrors.iter().map(|mirror| &mirror.target))
        })
    }
}
