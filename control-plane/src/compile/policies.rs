//! Policies at what they are attached to, and what is in force for one port or rule. The one place that knows which
//! setting is the more specific: what is sent and what `explain` says are both made of it.

pub mod access;
mod backend;
mod check;
mod elsewhere;
mod faults;
mod inbound;
mod jwt;
mod requests;
mod rule;
pub mod telemetry;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use weft_proto::v1;

use crate::source::{
    Object, Resources,
    policies::{
        Custom, Spec, TargetRef,
        limits::{FaultInjectionSpec, RateLimitPolicySpec},
        traffic::TrafficPolicySpec,
    },
};

pub use self::{
    access::Guards, backend::Backend, inbound::Inbound, jwt::Authentications, requests::Requests, rule::Rule,
};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin<'a> {
    /// Nobody set it.
    Default,
    /// The defaults of the mesh.
    Mesh,
    /// A policy.
    Policy { namespace: &'a str, name: &'a str },
    /// The rule of a route itself; `route` is `namespace/name`.
    Route { kind: &'a str, route: &'a str, rule: &'a str },
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Mesh => f.write_str("MeshConfig default"),
            Self::Policy { namespace, name } => write!(f, "TrafficPolicy {namespace}/{name}"),
            Self::Route { kind, route, rule } => write!(f, "{kind} {route}#{rule}"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a, T> {
    value: T,
    origin: Origin<'a>,
    /// 0 is the most specific.
    rank: usize,
}

/// One field for people: its path in a TrafficPolicy's spec, the value that counts, and who says so.
#[derive(Debug)]
pub struct Row<'a> {
    pub field: &'static str,
    pub value: String,
    pub origin: Origin<'a>,
}

impl<'a, T> Given<'a, T> {
    fn row(&self, field: &'static str, text: impl Fn(&T) -> String) -> Row<'a> {
        Row { field, value: text(&self.value), origin: self.origin }
    }
}

/// The settings of one object.
#[derive(Clone, Copy, Debug)]
struct Layer<'a> {
    origin: Origin<'a>,
    spec: &'a TrafficPolicySpec,
}

/// Settings, the most specific first.
struct Layers<'a>(Vec<Layer<'a>>);

impl<'a> Layers<'a> {
    /// The most specific that is given.
    fn pick<T>(&self, default: T, get: impl Fn(&'a TrafficPolicySpec) -> Option<T>) -> Given<'a, T> {
        let found = self.0.iter().enumerate().find_map(|(rank, layer)| Some((rank, layer.origin, get(layer.spec)?)));
        match found {
            Some((rank, origin, value)) => Given { value, origin, rank },
            None => Given { value: default, origin: Origin::Default, rank: self.0.len() },
        }
    }
}

/// Of two times that different objects set against each other the more specific counts.
fn ordered<'a>(shorter: &mut Given<'a, Duration>, longer: &mut Given<'a, Duration>) {
    if shorter.value > longer.value {
        if shorter.rank < longer.rank { *longer = *shorter } else { *shorter = *longer }
    }
}

/// What a policy is attached to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Place<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    section: Option<&'a str>,
}

/// A port of a service, as policies name it.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// Namespace of the service.
    pub namespace: &'a str,
    /// Name of the service.
    pub service: &'a str,
    /// May be empty.
    pub name: &'a str,
    /// 1 to 65535.
    pub number: u32,
}

type Policy<S> = Object<Custom<S>>;

/// Policies of one kind by what they are attached to.
struct Attached<'a, S>(HashMap<Place<'a>, Vec<&'a Policy<S>>>);

impl<'a, S: Spec> Attached<'a, S> {
    fn of(objects: &'a BTreeMap<String, Arc<Policy<S>>>) -> Self {
        let mut sorted: Vec<&Policy<S>> = objects.values().map(AsRef::as_ref).collect();
        sorted.sort_by_cached_key(|object| age(object));
        let mut found = HashMap::<_, Vec<_>>::new();
        for object in sorted {
            for (_, place) in places(object) {
                found.entry(place).or_default().push(object);
            }
        }
        Self(found)
    }

    /// The oldest first.
    fn at(&self, place: Place<'_>) -> Vec<&'a Policy<S>> {
        self.0.get(&place).cloned().unwrap_or_default()
    }

    /// At the port, by its name or its number, then at the whole service.
    fn at_port(&self, port: &Port<'_>) -> Vec<&'a Policy<S>> {
        let whole = Place { kind: "Service", namespace: port.namespace, name: port.service, section: None };
        let at = |section: &str| self.at(Place { section: Some(section), ..whole });
        let by_name = if port.name.is_empty() { Vec::new() } else { at(port.name) };
        let by_number = at(&port.number.to_string());
        let both = !by_name.is_empty() && !by_number.is_empty();
        let mut found = [by_name, by_number].concat();
        if both {
            found.sort_by_cached_key(|object| age(object));
        }
        found.extend(self.at(whole));
        found
    }

    /// What counts for requests of this rule, or of the port when it has none: the most specific first, each once.
    fn along(&self, port: &Port<'_>, rule: Option<&Rule<'_>>) -> Vec<&'a Policy<S>> {
        let mut found = Vec::new();
        if self.0.is_empty() {
            return found;
        }
        if let Some(rule) = rule {
            let place = Place { kind: rule.kind, namespace: rule.namespace, name: rule.route, section: None };
            found = [self.at(Place { section: Some(rule.section), ..place }), self.at(place)].concat();
        }
        found.extend(self.at_port(port));
        let whole = Place { kind: "Namespace", namespace: port.namespace, name: port.namespace, section: None };
        found.extend(self.at(whole));
        let mut seen: Vec<*const Policy<S>> = Vec::new();
        found.retain(|object| {
            let new = !seen.contains(&std::ptr::from_ref(*object));
            seen.push(*object);
            new
        });
        found
    }
}

/// Of two policies the older takes precedence, then the first by name (Gateway API).
fn age<S>(object: &Policy<S>) -> impl Ord + use<S> {
    let created = object.value.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created.is_none(), created, object.id())
}

/// What the policy is attached to, each with the index of its target reference.
fn places<S: Spec>(object: &Policy<S>) -> impl Iterator<Item = (usize, Place<'_>)> {
    let namespace = object.namespace.as_str();
    let whole = object.value.spec.targets().is_empty() && object.value.spec.selector().is_none();
    let whole = whole.then_some((0, Place { kind: "Namespace", namespace, name: namespace, section: None }));
    let targets = object.value.spec.targets().iter().enumerate().map(move |(index, target)| {
        let TargetRef { kind, name, section_name, .. } = target;
        (index, Place { kind, namespace, name, section: section_name.as_deref() })
    });
    whole.into_iter().chain(targets)
}

/// All policies on how calls are made, ready to be asked.
pub struct Policies<'a> {
    traffic: Attached<'a, TrafficPolicySpec>,
    faults: Attached<'a, FaultInjectionSpec>,
    rates: Attached<'a, RateLimitPolicySpec>,
    resources: &'a Resources,
}

impl<'a> Policies<'a> {
    /// Those of these resources.
    #[must_use]
    pub fn of(resources: &'a Resources) -> Self {
        Self {
            traffic: Attached::of(&resources.traffic_policies),
            faults: Attached::of(&resources.fault_injections),
            rates: Attached::of(&resources.rate_limit_policies),
            resources,
        }
    }

    /// Settings for requests of this rule, or of the port when it has none.
    fn layers<'p>(&'p self, port: &Port<'_>, rule: Option<&'p Rule<'p>>) -> Layers<'p> {
        let own = rule.map(|rule| Layer { origin: rule.origin(), spec: &rule.own });
        let policies = self.traffic.along(port, rule).into_iter().map(|object| Layer {
            origin: Origin::Policy { namespace: &object.namespace, name: &object.name },
            spec: &object.value.spec,
        });
        let mesh = self.resources.mesh_configs.get("default").and_then(|config| config.value.spec.traffic.as_ref());
        let mesh = mesh.map(|spec| Layer { origin: Origin::Mesh, spec });
        Layers(own.into_iter().chain(policies).chain(mesh).collect())
    }

    /// How requests of this rule are made, or those of the port when it has no routes.
    #[must_use]
    pub fn requests<'p>(&'p self, port: &Port<'_>, rule: Option<&'p Rule<'p>>) -> Requests<'p> {
        Requests::merge(&self.layers(port, rule))
    }

    /// How the endpoints behind the port are used.
    #[must_use]
    pub fn backend<'p>(&'p self, port: &Port<'_>) -> Backend<'p> {
        Backend::merge(&self.layers(port, None))
    }

    /// The failures for requests of this rule, the most specific first.
    #[must_use]
    pub fn faults(&self, port: &Port<'_>, rule: Option<&Rule<'_>>) -> Vec<v1::Fault> {
        self.faults.along(port, rule).into_iter().filter_map(faults::fault).collect()
    }

    /// The message for requests of this rule; none when everything is as it always is.
    #[must_use]
    pub fn request_message(&self, port: &Port<'_>, rule: Option<&Rule<'_>>) -> Option<v1::RequestPolicy> {
        let faults = self.faults(port, rule);
        let message = v1::RequestPolicy { faults, ..self.requests(port, rule).message() };
        (message != Requests::merge(&Layers(Vec::new())).message()).then_some(message)
    }

    /// The message for the endpoints behind the port; none when everything is as it always is.
    #[must_use]
    pub fn backend_message(&self, port: &Port<'_>) -> Option<v1::BackendPolicy> {
        let message = self.backend(port).message();
        (message != Backend::merge(&Layers(Vec::new())).message()).then_some(message)
    }
}

/// Per cent as parts per million, rounded.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000000")]
fn ppm(percent: f64) -> u32 {
    (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
}

/// Validation has bounded it.
fn wire(time: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(time).ok()
}

/// A length of time as it is written in YAML.
#[must_use]
pub fn text(time: &Duration) -> String {
    let (mut rest, mut written) = (time.as_millis(), String::new());
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= size {
            written.push_str(&format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    if written.is_empty() { "0s".to_owned() } else { written }
}

fn text_or_none(time: &Option<Duration>) -> String {
    time.as_ref().map_or_else(|| "none".to_owned(), text)
}
