//! What cannot be done to a compose file, and what becomes of its services. How a whole one looks afterwards is in the
//! corpus.

use crate::inject::{
    Options,
    text::{Filtered, Task, filter},
};

fn inject(text: &str) -> Result<Filtered, String> {
    filter("f.yaml", text, Task::Inject(&Options::of("weft-system"))).map_err(|problem| problem.to_string())
}

fn uninject(text: &str) -> Filtered {
    filter("f.yaml", text, Task::Uninject).unwrap()
}

fn told(filtered: &Filtered) -> Vec<String> {
    filtered.pods.iter().map(|(name, done)| format!("{} {done}", name.trim_start_matches("service/"))).collect()
}

/// A file with the service `web` and these fields.
fn web(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    format!("services:\n  web:\n    image: i\n{fields}")
}

#[test]
fn each_service_says_what_became_of_it() {
    let file = include_str!("../../../tests/inject/compose.yaml");
    let injected = inject(file).unwrap();
    let first = ["backup opted out", "catalog injected", "db opted out", "payments injected", "web injected"];
    assert_eq!(told(&injected), first);
    let again = inject(&injected.text).unwrap();
    let second = ["backup opted out", "catalog unchanged", "db opted out", "payments unchanged", "web unchanged"];
    assert_eq!((told(&again), &again.text), (second.map(str::to_owned).to_vec(), &injected.text));
    let without = uninject(&injected.text);
    let third = ["backup unchanged", "catalog uninjected", "db unchanged", "payments uninjected", "web uninjected"];
    assert_eq!(told(&without), third);
    assert_eq!(told(&uninject(file)).iter().filter(|told| told.ends_with("unchanged")).count(), 5);
}

#[test]
fn a_service_that_wants_none_any_more_loses_its_own() {
    let injected = inject(&web("expose: ['80']")).unwrap().text;
    assert!(injected.contains("web-weft-net:") && injected.contains("weft-run:"), "{injected}");
    let out = injected.replace("    image: i\n", "    image: i\n    labels: {weft.dev/inject: disabled}\n");
    let without = inject(&out).unwrap();
    assert_eq!(told(&without), ["web uninjected"]);
    assert_eq!(without.text, web("labels: {weft.dev/inject: disabled}\nexpose: ['80']"));
}

#[test]
fn what_cannot_have_a_sidecar_says_why_at_its_place() {
    let cases = [
        ("network_mode: host", "f.yaml:4:19", "would take the traffic of others"),
        ("scale: 2", "f.yaml:4:12", "a sidecar belongs to one"),
        ("deploy: {replicas: 3}", "f.yaml:4:24", "a sidecar belongs to one"),
        ("user: '15000:15000'", "f.yaml:4:11", "the app would pass the mesh"),
        ("extends: {file: other.yml, service: web}", "f.yaml:4:14", "docker compose config | weft inject -f -"),
        ("sysctls: [net.core.somaxconn=9]", "f.yaml:4:14", "settings of the kernel"),
        ("ports: ['$PORT']", "f.yaml:4:13", "name the ports of the app in the label weft.dev/ports"),
        ("expose: [15008]", "f.yaml:4:14", "port 15008 is the sidecar's"),
        ("labels: {weft.dev/port: '80'}", "f.yaml:4:29", "did you mean \"ports\"?"),
        ("labels: {weft.dev/ports: '80,80/http'}", "f.yaml:4:30", "port 80 is there already"),
        ("labels: {weft.dev/ports: '15020'}", "f.yaml:4:30", "port 15020 is the sidecar's"),
        ("labels: {weft.dev/memory-limit: 0.5Gi}", "f.yaml:4:37", "a whole number of bytes"),
        ("labels: {weft.dev/token: ''}", "f.yaml:4:30", "expected the path of a file"),
    ];
    for (fields, place, message) in cases {
        let error = inject(&web(fields)).unwrap_err();
        assert!(error.starts_with(place) && error.contains(message), "{fields}: {error}");
    }
    let named = inject("services:\n  My_Web:\n    image: i\n").unwrap_err();
    assert!(named.contains("the name is none of a mesh service"), "{named}");
    let taken = inject("services:\n  web:\n    image: i\n  web-weft:\n    image: i\n").unwrap_err();
    assert!(taken.contains("f.yaml:5:5") && taken.contains("the name is taken"), "{taken}");
    assert!(inject("services:\n  web: 7\n").unwrap_err().contains("must be a mapping"));
}

#[test]
fn without_redirection_the_user_of_the_sidecar_is_any_other() {
    assert!(inject(&web("user: 15000\nlabels: {weft.dev/redirect: disabled}")).is_ok());
}

#[test]
fn a_file_that_has_no_services_is_no_compose_file() {
    for text in ["services: []\n", "services: {}\nkind: Pod\n"] {
        assert!(inject(text).unwrap_err().contains("this is no object of Kubernetes"), "{text}");
    }
    assert_eq!(inject("services: {}\n").unwrap().text, "services: {}\n");
}
