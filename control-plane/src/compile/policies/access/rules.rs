//! Rules of an AuthorizationPolicy as conditions of the wire.

use std::collections::BTreeMap;

use weft_proto::v1::{
    self, Condition, ConditionGroup, ConditionSet, NamedValues, PortList, ValueList, condition::Kind,
};

use crate::source::policies::security::{AuthorizationOperation, AuthorizationRule, AuthorizationSource};

/// Whose rules they are.
pub struct Of<'a> {
    /// Namespaces and accounts are those of this trust domain.
    pub trust_domain: &'a str,
    /// Namespace of the policy.
    pub namespace: &'a str,
}

impl Of<'_> {
    /// One rule; validation has seen to it that no list is empty.
    pub fn rule(&self, rule: &AuthorizationRule) -> v1::AuthorizationRule {
        let mut groups = Vec::new();
        if let Some(from) = &rule.from {
            groups.push(group(from.iter().map(|source| self.source(source))));
        }
        if let Some(to) = &rule.to {
            groups.push(group(to.iter().map(operation)));
        }
        let claims: Vec<Condition> = rule
            .claim_maps()
            .into_iter()
            .flat_map(|(field, map)| by_name(field, map.as_ref(), |claim| claim.to_owned(), Kind::Claim))
            .collect();
        if !claims.is_empty() {
            groups.push(group(std::iter::once(claims)));
        }
        v1::AuthorizationRule { everything: groups.is_empty(), groups }
    }

    fn source(&self, source: &AuthorizationSource) -> Vec<Condition> {
        let lists = source.lists().into_iter();
        let lists = lists.filter_map(|(field, list)| {
            let list = list.as_deref()?;
            let mesh = format!("spiffe://{}/ns", self.trust_domain);
            let each = |form: &dyn Fn(&str) -> String| list.iter().map(|text| form(text)).collect();
            let kind = match field {
                "identities" | "notIdentities" => Kind::Identities(ValueList { values: list.to_vec() }),
                // To the slash: the names of others may begin alike.
                "namespaces" | "notNamespaces" => {
                    Kind::Identities(ValueList { values: each(&|name| format!("{mesh}/{name}/sa/*")) })
                }
                "serviceAccounts" | "notServiceAccounts" => {
                    let account = |name: &str| format!("{mesh}/{}/sa/{name}", self.namespace);
                    Kind::Identities(ValueList { values: each(&account) })
                }
                _ => Kind::Networks(ValueList { values: list.to_vec() }),
            };
            Some(condition(field, kind))
        });
        lists.collect()
    }
}

fn operation(operation: &AuthorizationOperation) -> Vec<Condition> {
    let ports = operation.port_lists().into_iter().filter_map(|(field, list)| {
        let values = list.clone()?;
        Some(condition(field, Kind::Ports(PortList { values })))
    });
    let lists = operation.lists().into_iter().filter_map(|(field, list)| {
        let list = ValueList { values: list.clone()? };
        let kind = match field {
            "methods" | "notMethods" => Kind::Methods(list),
            "paths" | "notPaths" => Kind::Paths(list),
            _ => Kind::Hosts(list),
        };
        Some(condition(field, kind))
    });
    let headers = operation.header_maps();
    let headers = headers
        .iter()
        .flat_map(|(field, map)| by_name(field, map.as_ref(), |name| name.to_ascii_lowercase(), Kind::Header));
    ports.chain(lists).chain(headers).collect()
}

/// One condition for each name.
fn by_name(
    field: &str,
    map: Option<&BTreeMap<String, Vec<String>>>,
    name: impl Fn(&str) -> String,
    kind: impl Fn(NamedValues) -> Kind,
) -> Vec<Condition> {
    let all = map.into_iter().flatten();
    all.map(|(key, values)| condition(field, kind(NamedValues { name: name(key), values: values.clone() }))).collect()
}

/// Fields whose names begin with `not` are negated.
fn condition(field: &str, kind: Kind) -> Condition {
    Condition { negated: field.starts_with("not"), kind: Some(kind) }
}

fn group(sets: impl Iterator<Item = Vec<Condition>>) -> ConditionGroup {
    ConditionGroup { any_of: sets.map(|all_of| ConditionSet { all_of }).collect() }
}
