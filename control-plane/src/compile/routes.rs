//! HTTPRoutes and GRPCRoutes of Services: where each is attached, and the rules of a Service port with their matches in
//! the precedence of Gateway API. Routes in the Service's own namespace are for all its clients; those in another are for
//! the clients there, in place of the others (GEP-1294, namespace boundaries).

mod attach;
mod references;
mod rules;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use weft_proto::v1;

use self::{attach::Key, references::Grants};
use super::services::ServiceView;
use crate::{
    sessions::Secret,
    source::{
        Problem, Reason, Resources, did_you_mean,
        routes::{matches::Ranked, requests::Requests},
    },
};

/// Most matches of one port, as the wire has it.
const MAX_MATCHES: usize = 1024;

/// A hint compares a name with all others: that is not done for each of a mass of problems.
pub const HINTS: usize = 50;

/// All services by id.
pub type Views<'a> = BTreeMap<String, ServiceView<'a>>;

/// A rule, and where policies may attach to it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Kind of its route.
    pub kind: &'static str,
    /// `namespace/name` of its route.
    pub route: String,
    /// Its name, or its place among the rules of its route.
    pub name: String,
    /// What the route says of how its requests are made; policies fill in the rest.
    pub requests: Requests,
    filters: Vec<v1::Filter>,
    session: Option<v1::SessionPersistence>,
    backends: Vec<v1::WeightedBackend>,
    matches: Vec<Ranked>,
}

impl Rule {
    /// Where its requests go.
    pub fn backends(&self) -> &[v1::WeightedBackend] {
        &self.backends
    }

    /// Which requests follow it, unless another rule precedes.
    pub fn matches(&self) -> impl Iterator<Item = &v1::RouteMatch> {
        self.matches.iter().map(|(_, found)| found)
    }

    /// `namespace/route#rule`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}#{}", self.route, self.name)
    }

    fn message(&self, requests: Option<v1::RequestPolicy>) -> v1::RouteRule {
        let (backends, filters) = (self.backends.clone(), self.filters.clone());
        v1::RouteRule { name: self.id(), backends, requests, filters, session: self.session.clone() }
    }
}

/// The routes of all service ports.
#[derive(Debug, Default)]
pub struct Routings(BTreeMap<Key, Vec<Rule>>);

impl Routings {
    /// Every rule, as often as it is attached.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.0.values().flatten()
    }

    /// Namespaces whose clients have routes of their own to the service.
    pub fn namespaces<'a>(&'a self, service: &'a str) -> BTreeSet<&'a str> {
        // Nothing sorts before a port of 0 without a view.
        let first = Key { service: service.to_owned(), port: 0, view: None };
        let of_service = self.0.range(first..).map(|(key, _)| key).take_while(move |key| key.service == service);
        of_service.filter_map(|key| key.view.as_deref()).collect()
    }

    /// The routing of a service port for the clients of a namespace, or for those of all namespaces that have no routes
    /// of their own to it. `requests` tells how those of a rule are made.
    pub fn message(
        &self,
        service: &str,
        port: u32,
        view: Option<&str>,
        requests: impl Fn(&Rule) -> Option<v1::RequestPolicy>,
    ) -> Option<v1::Routing> {
        let key = |view: Option<&str>| Key { service: service.to_owned(), port, view: view.map(str::to_owned) };
        let rules = view.and_then(|view| self.0.get(&key(Some(view)))).or_else(|| self.0.get(&key(None)))?;
        let mut matches: Vec<_> = (0..).zip(rules).flat_map(|(index, rule)| at(index, &rule.matches)).collect();
        // Ties stay as they are: older routes are first.
        matches.sort_by_key(|(rank, _)| Reverse(*rank));
        Some(v1::Routing {
            rules: rules.iter().map(|rule| rule.message(requests(rule))).collect(),
            matches: matches.into_iter().map(|(_, found)| found).collect(),
        })
    }
}

fn at(rule: u32, matches: &[Ranked]) -> impl Iterator<Item = Ranked> {
    matches.iter().map(move |(rank, found)| (*rank, v1::RouteMatch { rule, ..found.clone() }))
}

/// What of the same namespace has nearly this id: who asks may not know of others.
pub fn similar<V>(id: &str, known: &BTreeMap<String, V>) -> String {
    let own = id.split_inclusive('/').next().unwrap_or_default();
    let known = known.range(own.to_owned()..).map(|(id, _)| id.as_str());
    did_you_mean(id, known.take_while(|id| id.starts_with(own)))
}

/// The routing of every service port that has routes.
pub fn compile(resources: &Resources, views: &Views<'_>, secret: &Secret, problems: &mut Vec<Problem>) -> Routings {
    let grants = Grants::of(resources);
    let routes = attach::routes(resources);
    let mut attached: Vec<_> = routes.iter().map(|route| attach::ports(route, views, problems)).collect();
    attach::settle(&routes, &mut attached, problems);
    let mut found = Routings::default();
    for (route, ports) in routes.iter().zip(attached) {
        let keys: BTreeSet<Key> = ports.into_iter().map(|(_, key)| key).collect();
        let rules = rules::of(route, views, (&grants, secret), problems);
        let count: usize = rules.iter().map(|rule| rule.matches.len()).sum();
        for key in keys {
            let held = found.0.get(&key).into_iter().flatten().map(|rule| rule.matches.len()).sum::<usize>();
            // No entry is made: one without rules would answer every request with 404.
            if held + count > MAX_MATCHES {
                let message = format!("more than {MAX_MATCHES} matches at one Service port: this route is left out");
                problems.push(route.origin.problem("spec.rules", message, "").because(Reason::UnsupportedValue));
                continue;
            }
            found.0.entry(key).or_default().extend(rules.iter().cloned());
        }
    }
    found
}

#[cfg(test)]
mod tests;
