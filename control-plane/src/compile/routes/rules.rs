//! The rules of one route: backends and filters. What cannot be done is reported, and answered 500 rather than done
//! otherwise.

use weft_proto::v1::{self, filter::Kind};

use super::{
    HINTS, Rule, Views,
    attach::Route,
    references::{self, Grants},
};
use crate::{
    sessions::Secret,
    source::{
        Problem, Reason,
        routes::{
            self, Backend, Filter,
            filters::{self, Action},
            requests::Requests,
            word,
        },
    },
};

/// The rules of a route, in its order.
pub fn of(
    route: &Route<'_>,
    views: &Views<'_>,
    (grants, secret): (&Grants<'_>, &Secret),
    problems: &mut Vec<Problem>,
) -> Vec<Rule> {
    let mut compiler = Compiler { route, views, grants, secret, problems };
    let rules = route.rules.iter().enumerate();
    rules.map(|(index, (rule, matches))| Rule { matches: matches.clone(), ..compiler.rule(index, rule) }).collect()
}

struct Compiler<'a> {
    route: &'a Route<'a>,
    views: &'a Views<'a>,
    grants: &'a Grants<'a>,
    secret: &'a Secret,
    problems: &'a mut Vec<Problem>,
}

impl Compiler<'_> {
    fn rule(&mut self, index: usize, rule: &routes::Rule) -> Rule {
        let path = format!("spec.rules[{index}]");
        let own = rule.filters.as_deref().unwrap_or_default();
        let own = self.filters(own, &format!("{path}.filters"), false, "the rule answers 500");
        let backends = rule.backend_refs.iter().flatten().enumerate();
        let backends =
            backends.map(|(place, backend)| self.backend(backend, &format!("{path}.backendRefs[{place}]"))).collect();
        let (filters, backends): (_, Vec<_>) = own.map_or_else(Default::default, |filters| (filters, backends));
        let name = rule.name.clone().unwrap_or_else(|| index.to_string());
        Rule {
            kind: self.route.kind,
            route: self.route.id.clone(),
            session: self.session(rule, &name, &backends, &path),
            name,
            requests: Requests::of(rule),
            filters,
            backends,
            matches: Vec::new(),
        }
    }

    /// Its sessions, unless a Service has an affinity of its own (GEP-1619 rejects the two together).
    fn session(
        &mut self,
        rule: &routes::Rule,
        name: &str,
        backends: &[v1::WeightedBackend],
        path: &str,
    ) -> Option<v1::SessionPersistence> {
        let id = format!("{}#{name}", self.route.id);
        let session = routes::session::of(rule, &id)?;
        let by_address = backends.iter().find(|backend| {
            let object = self.views.get(&backend.service).and_then(|view| view.object);
            let spec = object.and_then(|object| object.value.spec.as_ref());
            spec.is_some_and(|spec| spec.session_affinity.as_deref() == Some("ClientIP"))
        });
        if let Some(backend) = by_address {
            let service = &backend.service;
            let message = format!("Service \"{service}\" has sessionAffinity ClientIP: the rule has no sessions");
            let path = format!("{path}.sessionPersistence");
            self.unsupported(&path, &message, "use one of the two");
            return None;
        }
        Some(v1::SessionPersistence { key: self.secret.key(self.route.kind, &id).into(), ..session })
    }

    fn backend(&mut self, backend: &Backend, path: &str) -> v1::WeightedBackend {
        let weight = backend.weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1);
        let consequence = "its share answers 500";
        let filters = self.filters(&routes::backend_filters(backend), &format!("{path}.filters"), true, consequence);
        let place = (self.views, self.grants);
        let target =
            references::resolve(self.route, backend.into(), path, place, consequence, self.problems.len() < HINTS);
        match (target, filters) {
            (Ok((service, port)), Some(filters)) => v1::WeightedBackend { service, port, weight, filters },
            (Ok(_), None) => v1::WeightedBackend { weight, ..v1::WeightedBackend::default() },
            (Err(problem), _) => {
                self.problems.push(problem);
                v1::WeightedBackend { weight, ..v1::WeightedBackend::default() }
            }
        }
    }

    /// The filters of a rule or backend; `None` if there is one that we cannot apply.
    fn filters(
        &mut self,
        filters: &[Filter],
        path: &str,
        of_backend: bool,
        consequence: &str,
    ) -> Option<Vec<v1::Filter>> {
        let (mut found, mut all) = (Vec::new(), true);
        for (index, filter) in filters.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let kind = match filters::action(filter) {
                Action::Unsupported => None,
                // They answer before a backend is chosen.
                Action::Filter(Kind::Redirect(_) | Kind::Cors(_)) if of_backend => None,
                Action::Filter(kind) => Some(kind),
                Action::Mirror(to, ppm) => {
                    found.extend(self.mirror(to, ppm, &format!("{path}.requestMirror.backendRef")));
                    continue;
                }
            };
            if kind.is_none() {
                let place = if of_backend { " at a backend" } else { "" };
                let message = format!("filter {}{place} is not supported: {consequence}", word(&filter.r#type));
                self.unsupported(&format!("{path}.type"), &message, "remove the filter");
            }
            all &= kind.is_some();
            found.extend(kind);
        }
        all.then(|| found.into_iter().map(|kind| v1::Filter { kind: Some(kind) }).collect())
    }

    /// A mirror that leads nowhere is left out: nobody waits for what it answers.
    fn mirror(&mut self, to: &routes::MirrorBackend, ppm: u32, path: &str) -> Option<Kind> {
        let place = (self.views, self.grants);
        let (consequence, hint) = ("nothing is mirrored there", self.problems.len() < HINTS);
        match references::resolve(self.route, to.into(), path, place, consequence, hint) {
            Ok((service, port)) => (ppm > 0).then_some(Kind::Mirror(v1::Mirror { service, port, ppm })),
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }

    fn unsupported(&mut self, path: &str, message: &str, hint: &str) {
        self.problems.push(self.route.origin.problem(path, message, hint).because(Reason::UnsupportedValue));
    }
}
