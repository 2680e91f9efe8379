//! Which services of a port a RequestAuthentication is for.

use super::*;

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn authentications(policies: &str) -> Vec<v1::InboundAuthentication> {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n"
        )
    };
    let resources = load(&format!("{}{}{policies}", service("one"), service("two")));
    let web = registered("web-1", &[("app", "web")], &[(8080, "http", v1::Protocol::Http)]);
    let (output, _) = compile(&resources, &[web]);
    let config = get::<v1::WorkloadConfig>(&output, ResourceType::WorkloadConfig, "default/web-1");
    let port = config.ports.into_iter().find(|port| port.port == 8080).expect("the port");
    port.request_authentications
}

fn policy(name: &str, service: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: {name}}}\n\
         spec: {{targetRefs: [{{kind: Service, name: {service}}}], required: true, \
         jwt: [{{issuer: \"https://{name}\", jwks: '{KEYS}'}}]}}\n---\n"
    )
}

#[test]
fn the_name_of_a_service_without_a_policy_is_no_way_around_that_of_another_at_the_same_port() {
    let found = authentications(&policy("a", "one"));
    assert_eq!(found.len(), 1);
    assert!(found[0].services.is_empty(), "for every service of the port: {:?}", found[0].services);

    let names = |found: &[v1::InboundAuthentication], index: usize| -> Vec<String> {
        found[index].services.iter().map(|service| service.service.clone()).collect()
    };
    let found = authentications(&format!("{}{}", policy("a", "one"), policy("b", "two")));
    assert_eq!((names(&found, 0), names(&found, 1)), (vec!["default/one".into()], vec!["default/two".into()]));
}
