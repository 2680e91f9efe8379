//! What is in force for the requests of one rule: settings, each with the object that it comes from, sessions, failures on
//! purpose, and the limits that wait at the other end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message as _;
use serde_json::{Map, Value, json};
use weft_policy::{
    model::{Abort, Carrier, Fault, InboundLimit, Protocol, RateKey, RouteRule, Service, ServicePort, Session, Target},
    routing::RequestView,
};
use weft_proto::{ResourceType, v1};

use super::{
    Question, access,
    behind::{self, Behind},
};
use crate::{
    compile::{
        Registered,
        policies::{Policies, Port, Row, Rule, text},
    },
    push::View,
    source::Resources,
};

/// Everything that an answer about settings is made of.
pub struct Effective<'a> {
    pub view: &'a View,
    pub resources: &'a Resources,
    pub registered: &'a [Arc<Registered>],
    pub sees: &'a dyn Fn(&str) -> bool,
    pub question: &'a Question,
    pub request: &'a RequestView<'a>,
    pub service: &'a Service,
    pub port: &'a ServicePort,
}

impl Effective<'_> {
    /// Adds `effective`, `faults`, `rateLimits` and `access`. A setting in which the backends differ is at each backend.
    pub fn put(&self, rule: &RouteRule, answer: &mut Value) {
        let policies = Policies::of(self.resources);
        let named = Rule::named(&rule.name, self.port.protocol == Protocol::Grpc, self.resources);
        let place = port(self.service.id.as_str(), self.port.port, &self.port.name);
        let mut settings = Map::new();
        put(&mut settings, policies.requests(&place, named.as_ref()).rows());
        if let Some(held) = &rule.session {
            let origin = named.as_ref().map_or_else(|| rule.name.to_string(), |rule| rule.origin().to_string());
            settings.insert("sessionPersistence".to_owned(), json!({ "value": session(held), "origin": origin }));
        }
        let names: Vec<Option<String>> =
            rule.backends.iter().map(|backend| backend.target.as_ref().map(|target| self.port_name(target))).collect();
        let each: Vec<Option<Map<String, Value>>> = rule
            .backends
            .iter()
            .zip(&names)
            .map(|(backend, name)| {
                let target = backend.target.as_ref().filter(|target| (self.sees)(target.service.namespace()))?;
                let mut fields = Map::new();
                let place = port(target.service.as_str(), target.port, name.as_deref()?);
                put(&mut fields, policies.backend(&place).rows());
                Some(fields)
            })
            .collect();
        let first = each.iter().flatten().next().cloned().unwrap_or_default();
        for (field, value) in first {
            if each.iter().flatten().all(|fields| fields.get(&field) == Some(&value)) {
                settings.insert(field, value);
                continue;
            }
            for (index, fields) in each.iter().enumerate() {
                if let Some(value) = fields.as_ref().and_then(|fields| fields.get(&field)) {
                    answer["backends"][index]["effective"][&field] = value.clone();
                }
            }
        }
        answer["effective"] = settings.into();
        let applies = |fault: &&Fault| {
            fault.expires.is_none_or(|end| end > self.question.now)
                && fault.headers.iter().all(|header| header.matches(self.request.headers))
        };
        answer["faults"] = rule.requests.faults.iter().filter(applies).map(fault).collect();
        let behind = Behind::of(self, rule);
        answer["rateLimits"] = self.rate_limits(&behind);
        answer["access"] = access::access(self, &behind);
    }

    /// Policies name ports by name too.
    fn port_name(&self, target: &Target) -> String {
        let services = self.view.named(ResourceType::Service, target.service.as_str(), &self.question.namespace);
        let service = services.first().and_then(|resource| resource.resource.as_ref());
        let service = service.and_then(|any| v1::Service::decode(any.value.as_ref()).ok()).unwrap_or_default();
        let found = service.ports.into_iter().find(|port| port.port == u32::from(target.port));
        found.map(|port| port.name).unwrap_or_default()
    }

    /// Limits of the workloads behind the rule that would count the request.
    fn rate_limits(&self, behind: &Behind) -> Value {
        let mut found = BTreeMap::new();
        for behind::Port { inbound, targets } in behind.ports.values() {
            let counts = |limit: &InboundLimit| targets.iter().any(|target| self.counts(limit, target));
            for limit in inbound.rate_limits.iter().filter(|limit| counts(limit)) {
                found.insert(limit.limit.name.to_string(), rate_limit(limit));
            }
        }
        found.into_values().collect()
    }

    fn counts(&self, limit: &InboundLimit, target: &Target) -> bool {
        (limit.services.is_empty() || limit.services.contains(target))
            && (limit.matches.is_empty() || limit.matches.iter().any(|found| found.matches(self.request)))
    }
}

fn port<'a>(id: &'a str, number: u16, name: &'a str) -> Port<'a> {
    let (namespace, service) = id.split_once('/').unwrap_or(("", id));
    Port { namespace, service, name, number: number.into() }
}

fn put(fields: &mut Map<String, Value>, rows: Vec<Row<'_>>) {
    for row in rows {
        fields.insert(row.field.to_owned(), json!({ "value": row.value, "origin": row.origin.to_string() }));
    }
}

fn fault(fault: &Fault) -> Value {
    let mut told = json!({ "origin": format!("FaultInjection {}", fault.name) });
    if let Some((delay, share)) = &fault.delay {
        told["delay"] = format!("{} for {}", text(delay), percent(*share)).into();
    }
    if let Some((abort, share)) = &fault.abort {
        let what = match abort {
            Abort::Http(status) => format!("status {}", status.as_u16()),
            Abort::Grpc(code) => {
                format!("gRPC {}", weft_policy::grpc::name((*code).into()).unwrap_or("UNKNOWN"))
            }
            Abort::Reset => "reset".to_owned(),
        };
        told["abort"] = format!("{what} for {}", percent(*share)).into();
    }
    if let Some((bytes, share)) = &fault.bandwidth {
        told["bandwidth"] = format!("{bytes} bytes per second for {}", percent(*share)).into();
    }
    if let Some(end) = fault.expires.and_then(|end| k8s_openapi::jiff::Timestamp::try_from(end).ok()) {
        told["until"] = crate::api::admit::timestamp(end).into();
    }
    told
}

fn rate_limit(limit: &InboundLimit) -> Value {
    let limit = &limit.limit;
    let key = match &limit.key {
        RateKey::Total => "all callers together".to_owned(),
        RateKey::Identity => "each identity".to_owned(),
        RateKey::SourceIp => "each address".to_owned(),
        RateKey::Header(name) => format!("each value of header {name}"),
        RateKey::Claim(name) => format!("each value of claim {name}"),
    };
    let per = if limit.per == Duration::from_secs(1) { "second".to_owned() } else { text(&limit.per) };
    let value = format!("{} per {per}, {} at once, {key}", limit.requests, limit.burst);
    json!({ "origin": format!("RateLimitPolicy {}", limit.name), "value": value })
}

/// Which requests stay with the endpoint of an earlier one, and how long. Its key is nobody's business.
fn session(session: &Session) -> String {
    let carrier = match &session.carrier {
        Carrier::Cookie { name, permanent: true } => format!("cookie {name}, which the caller keeps"),
        Carrier::Cookie { name, permanent: false } => format!("cookie {name}"),
        Carrier::Header(name) => format!("header {name}"),
    };
    let absolute = session.absolute.as_ref().map(|time| format!(", {} in all", text(time)));
    let idle = session.idle.as_ref().map(|time| format!(", {} without a request", text(time)));
    format!("by {carrier}{}{}", absolute.unwrap_or_default(), idle.unwrap_or_default())
}

fn percent(ppm: u32) -> String {
    format!("{} %", f64::from(ppm) / 10_000.0)
}
