//! From YAML as people write it to the decisions that a sidecar takes by what it was sent.

mod attached;
mod decisions;
mod effects;
mod refused;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use prost::Message as _;
use weft_policy::{
    convert,
    model::{RouteRule, Service},
    routing::RequestView,
};
use weft_proto::{ResourceType, v1};

use crate::{
    compile::{Output, compile},
    source::{Problem, Resources},
};

/// Services `default/web` (two ports), `default/other` and `far/store`.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80, name: http}, {port: 7070, name: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: store, namespace: far}
spec: {ports: [{port: 80}]}
";

/// A route of a kind, with this metadata, to `default/web` and with these rules.
fn route(kind: &str, metadata: &str, rules: &str) -> String {
    let parent = "{kind: Service, group: '', name: web, namespace: default}";
    attached(kind, metadata, parent, rules)
}

fn attached(kind: &str, metadata: &str, parents: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec:\n  \
         parentRefs: [{parents}]\n  rules: [{rules}]\n"
    )
}

/// What is wrong with an object that is applied, as `path: message (hint)`.
fn wrong(text: &str) -> Vec<String> {
    let (_, problems) = Resources::from_text("f.yaml", text);
    problems.iter().map(said).collect()
}

fn said(problem: &Problem) -> String {
    let whole = problem.to_string();
    whole.split_once(&problem.path).map_or(whole.clone(), |(_, rest)| format!("{}{rest}", problem.path))
}

/// What sidecars get of the services and these routes, and what is wrong beside it.
fn mesh(routes: &str) -> (Output, Vec<String>) {
    let (resources, problems) = Resources::from_text("f.yaml", &format!("{SERVICES}{routes}"));
    assert_eq!(problems, [], "{routes}");
    let (output, problems) = compile(&resources, &[]);
    (output, problems.iter().map(said).collect())
}

/// The service as a sidecar of a namespace holds it.
fn held(output: &Output, name: &str, namespace: &str) -> Service {
    let compiled = &output[&(ResourceType::Service, name.to_owned())];
    let bytes = compiled.views.get(namespace).unwrap_or(&compiled.bytes);
    convert::service(v1::Service::decode(bytes.as_ref()).expect("a message")).expect("it is accepted")
}

/// A request, written as `METHOD /path?query name=value ...`.
struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

fn request(text: &str) -> Request {
    let mut words = text.split(' ');
    let method = words.next().expect("a method").parse().expect("a method");
    let uri = words.next().expect("a path").parse().expect("a path");
    let header = |word: &str| {
        let (name, value) = word.split_once('=').expect("a header");
        (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
    };
    Request { method, uri, headers: words.map(header).collect() }
}

/// The rule that a request to a port of the service follows.
fn rule<'a>(service: &'a Service, port: u16, text: &str) -> Option<&'a RouteRule> {
    let request = request(text);
    let routing = service.port(port).expect("the port").routing.as_ref().expect("routes");
    let view = RequestView {
        method: &request.method,
        path: request.uri.path(),
        query: request.uri.query(),
        headers: &request.headers,
    };
    routing.find(&view).map(|(_, rule)| &**rule)
}

/// Its name, without that of the route.
fn followed<'a>(service: &'a Service, port: u16, text: &str) -> Option<&'a str> {
    rule(service, port, text).and_then(|rule| rule.name.rsplit_once('#')).map(|(_, name)| name)
}
