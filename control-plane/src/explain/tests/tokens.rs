//! What is told of RequestAuthentications, and how many workloads are told of.

use super::*;

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn web(name: &str, protocol: v1::Protocol) -> Arc<Registered> {
    let ports = vec![v1::WorkloadPort { port: 8080, protocol: protocol.into(), ..Default::default() }];
    let registration = v1::Registration {
        name: name.into(),
        namespace: "default".into(),
        labels: [("app".into(), "web".into())].into(),
        address: "127.0.0.1".into(),
        mesh_address: "127.0.0.1:15008".into(),
        ports,
        healthy: true,
        ..v1::Registration::default()
    };
    Arc::new(Registered { registration, spiffe_id: format!("spiffe://weft.local/ns/default/sa/{name}") })
}

/// The answer to a request with these headers to the first of two services of one port.
fn ask(policies: &str, all: &[Arc<Registered>], headers: &[(&'static str, &'static str)]) -> Value {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n"
        )
    };
    let text = format!("{}{}{policies}", service("one"), service("two"));
    let (resources, problems) = Resources::from_text("f.yaml", &text);
    assert_eq!(problems, []);
    let view = View::default().next(&compile(&resources, all).0, 0);
    let pairs = headers
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)));
    let question = Question {
        method: Method::GET,
        url: "http://one/".parse().expect("a URL"),
        namespace: "default".into(),
        from: None,
        headers: pairs.collect(),
        now: SystemTime::UNIX_EPOCH,
    };
    explain(&view, &resources, all, &question, &|_| true).expect("an answer")
}

fn policy(name: &str, service: &str, required: bool, jwt: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: {name}}}\n\
         spec: {{targetRefs: [{{kind: Service, name: {service}}}], required: {required}, jwt: [{jwt}]}}\n---\n"
    )
}

#[test]
fn what_is_asked_of_tokens_at_the_called_service_is_told_and_of_another_at_the_same_port_is_not() {
    let jwt = |issuer: &str| format!("{{issuer: 'https://{issuer}', audiences: [shop], jwks: '{KEYS}'}}");
    let keyless = "{issuer: 'https://far', jwksUri: 'https://far/jwks', fromHeaders: [x-token]}";
    let both = format!("{}, {keyless}", jwt("id"));
    let policies = format!("{}{}", policy("users", "one", true, &both), policy("others", "two", false, &jwt("b")));
    let all = [web("web-1", v1::Protocol::Http)];
    let told = |headers: &[_]| ask(&policies, &all, headers)["access"][0].clone();

    let without = told(&[]);
    assert_eq!((&without["verdict"], without["authentication"].as_array().map(Vec::len)), (&"denied".into(), Some(1)));
    let because = "RequestAuthentication default/users requires a token, and the request has none";
    assert_eq!(without["because"], because);
    let users = &without["authentication"][0];
    assert_eq!(
        (&users["name"], &users["required"], &users["hasToken"]),
        (&"default/users".into(), &true.into(), &false.into())
    );
    assert_eq!(users["withoutToken"], "401: a token is required");
    assert_eq!(users["issuers"][0]["issuer"], "https://id");
    assert_eq!((&users["issuers"][0]["keys"], &users["issuers"][1]["keys"]), (&1.into(), &0.into()));
    assert_eq!(users["issuers"][0]["audiences"], json!(["shop"]));
    let with = users["withToken"].as_str().expect("told");
    assert!(with.contains("401 when it is of https://far, whose keys are not there"), "{with}");

    for header in [("authorization", "bearer abc"), ("x-token", "abc")] {
        let with = told(&[header]);
        assert_eq!((&with["verdict"], &with["authentication"][0]["hasToken"]), (&"allowed".into(), &true.into()));
        assert!(
            with["because"].as_str().expect("told").ends_with("if its token is valid; claims are not looked at here")
        );
    }
    let basic = told(&[("authorization", "Basic abc")]);
    assert_eq!(basic["because"], because, "other credentials are no token");
}

#[test]
fn a_token_that_is_not_required_is_told_too_and_bytes_have_none() {
    let keyless = "{issuer: 'https://far', jwksUri: 'https://far/jwks'}";
    let policies = policy("users", "one", false, keyless);
    let told = |protocol| ask(&policies, &[web("web-1", protocol)], &[])["access"][0].clone();
    let http = told(v1::Protocol::Http);
    assert_eq!(http["verdict"], "allowed");
    let users = &http["authentication"][0];
    assert!(users["withoutToken"].as_str().expect("told").starts_with("goes on without claims"), "{users}");
    assert_eq!(users["withToken"], "401: the keys of its issuer are not there");
    let tcp = told(v1::Protocol::Tcp);
    assert_eq!(
        (&tcp["verdict"], &tcp["because"]),
        (&"denied".into(), &"RequestAuthentication default/users: bytes have no token".into())
    );
}

#[test]
fn of_many_workloads_the_first_are_told_and_how_many_are_left_out() {
    let all: Vec<_> = (0..behind::MAX + 7).map(|number| web(&format!("web-{number:04}"), v1::Protocol::Http)).collect();
    let answer = ask("", &all, &[]);
    let access = answer["access"].as_array().expect("a list");
    assert_eq!(access.len(), behind::MAX + 1);
    assert_eq!(access[behind::MAX]["because"], "7 more ports of workloads are left out");
    assert_eq!(answer["healthyEndpoints"], behind::MAX + 7);
}
