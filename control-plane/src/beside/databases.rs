//! A database per service: which databases several services may share, as far as policies tell. Whom a Service's
//! workloads call is written nowhere; who may call them is.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;

use crate::source::{
    Object, Problem, Resources,
    policies::{
        Custom, Spec,
        security::{Action, AuthorizationPolicySpec, AuthorizationRule, MESH_NAMESPACE},
    },
};

/// Ports that databases listen on.
const DATABASES: [(i32, &str); 12] = [
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (3306, "MySQL"),
    (5432, "PostgreSQL"),
    (5984, "CouchDB"),
    (6379, "Redis"),
    (7687, "Neo4j"),
    (8529, "ArangoDB"),
    (9042, "Cassandra"),
    (26257, "CockroachDB"),
    (27017, "MongoDB"),
    (33060, "MySQL"),
];

/// Each database that no AuthorizationPolicy reserves for one service account.
#[must_use]
pub fn shared(resources: &Resources) -> Vec<Problem> {
    let policies: Vec<_> = resources
        .authorization_policies
        .values()
        .filter(|policy| policy.value.spec.action == Action::Allow && !policy.value.spec.dry_run)
        .collect();
    let mut found = Vec::new();
    for service in resources.services.values() {
        let ports = service.value.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).enumerate();
        for (index, port) in ports {
            let Some((_, database)) = DATABASES.iter().find(|(number, _)| *number == port.port) else { continue };
            let here = policies.iter().filter(|policy| applies(policy, service, port));
            let mut callers = BTreeSet::new();
            let mut policies = 0;
            for policy in here {
                policies += 1;
                callers.extend(policy.value.spec.rules.iter().flat_map(|rule| who(rule, &policy.namespace)));
            }
            let why = match callers.len() {
                0 | 1 if policies > 0 && !callers.contains(ANYONE) => continue,
                _ if policies == 0 => "no AuthorizationPolicy limits who calls it".to_owned(),
                _ => {
                    let names: Vec<&str> = callers.iter().map(String::as_str).collect();
                    format!("AuthorizationPolicies let in {}", names.join(", "))
                }
            };
            let message = format!("{database} on {} may be shared by several services: {why}", service.id());
            let hint = "a database per service: an Allow policy with one of serviceAccounts";
            found.push(service.origin.problem(&format!("spec.ports[{index}].port"), message, hint));
        }
    }
    found
}

/// Stands for callers that a rule does not limit to accounts.
const ANYONE: &str = "more than one account";

/// The accounts that a rule lets in.
fn who(rule: &AuthorizationRule, namespace: &str) -> Vec<String> {
    let Some(sources) = &rule.from else { return vec![ANYONE.to_owned()] };
    let mut found = Vec::new();
    for source in sources {
        if let Some(accounts) = &source.service_accounts {
            found.extend(accounts.iter().map(|account| format!("{namespace}/{account}")));
            continue;
        }
        match &source.identities {
            Some(ids) => found.extend(ids.iter().map(|id| {
                if id.ends_with('*') {
                    return ANYONE.to_owned();
                }
                let parsed = weft_policy::SpiffeId::parse(id).ok();
                let named = parsed.as_ref().and_then(weft_policy::SpiffeId::namespace_and_account);
                named.map_or_else(|| id.clone(), |(namespace, account)| format!("{namespace}/{account}"))
            })),
            None => found.push(ANYONE.to_owned()),
        }
    }
    found
}

/// Whether the policy guards the workloads of this port of the service.
fn applies(
    policy: &Object<Custom<AuthorizationPolicySpec>>,
    service: &Object<core::Service>,
    port: &core::ServicePort,
) -> bool {
    let spec = &policy.value.spec;
    let whole = spec.targets().is_empty() && spec.selector().is_none();
    if whole && policy.namespace == MESH_NAMESPACE {
        return true;
    }
    if policy.namespace != service.namespace {
        return false;
    }
    let here = |section: &Option<String>| {
        section.as_ref().is_none_or(|name| Some(name) == port.name.as_ref() || *name == port.port.to_string())
    };
    let target = spec.targets().iter().any(|target| match target.kind.as_str() {
        "Namespace" => target.name == service.namespace,
        _ => target.name == service.name && here(&target.section_name),
    });
    let labels = service.value.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selected = spec.selector().is_some_and(|selector| {
        labels.is_some_and(|labels| selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value)))
    });
    whole || target || selected
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
        spec: {selector: {app: db}, ports: [{name: sql, port: 5432}, {port: 80}]}\n---\n";

    fn found(policies: &[&str]) -> Vec<String> {
        let policy = |(index, spec): (usize, &&str)| {
            let namespace = if spec.starts_with("mesh ") { "weft-system" } else { "shop" };
            let spec = spec.trim_start_matches("mesh ");
            format!(
                "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: p{index}, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
            )
        };
        let text = format!("{SERVICE}{}", policies.iter().enumerate().map(policy).collect::<String>());
        let (resources, problems) = Resources::from_text("f.yaml", &text);
        assert_eq!(problems, []);
        shared(&resources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_database_for_one_account_is_fine_however_the_policy_reaches_it() {
        let one = "rules: [{from: [{serviceAccounts: [orders]}]}]";
        for target in [
            "",
            "targetRefs: [{kind: Service, name: db}], ",
            "targetRefs: [{kind: Service, name: db, sectionName: sql}], ",
            "targetRefs: [{kind: Namespace, name: shop}], ",
            "selector: {matchLabels: {app: db}}, ",
        ] {
            assert_eq!(found(&[&format!("{target}{one}")]), Vec::<String>::new(), "{target}");
        }
        assert!(found(&["rules: [{from: [{identities: ['spiffe://weft.local/ns/shop/sa/orders']}]}]", one]).is_empty());
        assert!(found(&["rules: []"]).is_empty(), "nobody");
    }

    #[test]
    fn a_database_without_a_policy_or_for_several_accounts_is_told_at_its_port() {
        let nobody_limits = found(&[]);
        assert_eq!(nobody_limits.len(), 1, "{nobody_limits:?}");
        let start = "f.yaml:4:55: spec.ports[0].port: PostgreSQL on shop/db may be shared by several services: no \
                     AuthorizationPolicy limits who calls it";
        assert!(nobody_limits[0].starts_with(start), "{nobody_limits:?}");
        for (policies, told) in [
            (&["rules: [{from: [{serviceAccounts: [orders, payments]}]}]"][..], "let in shop/orders, shop/payments"),
            (
                &["rules: [{from: [{serviceAccounts: [a]}]}]", "mesh rules: [{from: [{serviceAccounts: [b]}]}]"],
                "shop/a, weft-system/b",
            ),
            (&["rules: [{}]"], ANYONE),
            (&["rules: [{from: [{namespaces: [shop]}]}]"], ANYONE),
            (&["rules: [{from: [{identities: ['*']}]}]"], ANYONE),
            (&["action: Deny, rules: [{}]"], "no AuthorizationPolicy"),
            (&["dryRun: true"], "no AuthorizationPolicy"),
            (&["targetRefs: [{kind: Service, name: db, sectionName: '80'}]"], "no AuthorizationPolicy"),
        ] {
            let found = found(policies);
            assert!(found.len() == 1 && found[0].contains(told), "{policies:?} {found:?}");
        }
    }
}
