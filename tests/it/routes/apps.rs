//! Callers and apps that write down what they get, line by line, for tables of what is to be among these lines.

use std::sync::{Arc, Mutex, mpsc::Receiver};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};

use crate::{
    http2::{End, connect, drain, within},
    mesh::TestMesh,
    net::call,
};

/// How a request is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caller {
    Http1,
    Http2,
    Grpc,
}

/// What an app has seen: for each request `at NAME METHOD /path`, `at NAME host: value` and a line for each field.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn write(&self, line: String) {
        self.0.lock().expect("no panic").push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

/// What the paths of an app have counted.
#[derive(Clone, Default)]
pub struct Counts(Arc<Mutex<std::collections::HashMap<String, usize>>>);

impl Counts {
    /// How many came before to this path.
    fn next(&self, path: &str) -> usize {
        let mut counts = self.0.lock().expect("no panic");
        let count = counts.entry(path.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

/// An app in HTTP/2 whose paths say what it does: two of three requests to `/fails-twice` fail, every second one to
/// `/slow-once` and all to `/hang` get no answer.
pub async fn app(name: &'static str, log: Log) -> std::net::SocketAddr {
    let counts = Counts::default();
    crate::http2::serve(move |request, respond| handle(name, log.clone(), counts.clone(), request, respond)).await
}

async fn handle(
    name: &'static str,
    log: Log,
    counts: Counts,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> End {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    log.write(format!("at {name} {} {target}", head.method));
    let host = head.uri.authority().map_or("", |host| host.as_str());
    log.write(format!("at {name} host: {host}"));
    for line in fields(&head.headers) {
        log.write(format!("at {name} {line}"));
    }
    let lower = path.to_lowercase().replace("shop.", "").replace("failstwice", "fails-twice");
    let count = counts.next(&lower);
    let hangs = lower.starts_with("/hang") || (lower.starts_with("/slow-once") && count.is_multiple_of(2));
    if hangs {
        // Until the caller has enough of it.
        let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
        return End::Stays;
    }
    let _ = drain(&mut body).await;
    let fails = lower.starts_with("/fails-twice") && count % 3 != 2;
    let grpc = head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    let mut answer = Response::new(());
    let names = [("x-app", name), ("x-set", "app"), ("x-add", "app"), ("x-remove", "app")];
    for (field, value) in names {
        answer.headers_mut().insert(field, http::HeaderValue::from_static(value));
    }
    if grpc {
        answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        let code = http::HeaderValue::from_static(if fails { "10" } else { "0" });
        if fails {
            answer.headers_mut().insert("grpc-status", code);
            let _ = respond.send_response(answer, true);
        } else if let Ok(mut stream) = respond.send_response(answer, false) {
            let _ = stream.send_trailers(HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), code)]));
        }
        return End::Stays;
    }
    if fails {
        *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    }
    if let Ok(mut stream) = respond.send_response(answer, false) {
        let _ = stream.send_data(Bytes::from_static(b"hello"), true);
    }
    End::Stays
}

fn fields(headers: &HeaderMap) -> Vec<String> {
    headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect()
}

/// A mesh with what its apps have seen.
pub struct Observed {
    pub mesh: TestMesh,
    pub log: Log,
    /// Heads of requests to the app `other`, in lower case.
    pub other: Receiver<String>,
}

impl Observed {
    /// Makes a request, `METHOD /path`, with fields `name: value`, to a service. What is observed: `status N`, a line
    /// `answer name: value` for each field of the answer and its trailers, `seen N` and the lines of the apps.
    pub async fn call(&self, caller: Caller, service: &str, request: &str, fields: &[&str]) -> Vec<String> {
        let mut lines = match caller {
            Caller::Http1 => self.http1(service, request, fields),
            Caller::Http2 | Caller::Grpc => within(request, self.http2(caller, service, request, fields)).await,
        };
        let mut seen = self.log.take();
        for head in self.other.try_iter() {
            seen.extend(head.lines().filter(|line| !line.is_empty()).map(|line| format!("at other {line}")));
        }
        let count = seen.iter().filter(|line| line.contains(" host: ")).count();
        lines.push(format!("seen {count}"));
        lines.extend(seen);
        lines
    }

    fn http1(&self, service: &str, request: &str, fields: &[&str]) -> Vec<String> {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let text =
            format!("{request} HTTP/1.1\r\nHost: {service}\r\nX-Caller: http1\r\nConnection: close\r\n{fields}\r\n");
        let (status, text) = call(self.mesh.local(service), &text).unwrap_or_else(|error| panic!("{request}: {error}"));
        let (head, _) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {text}"));
        let line = |line: &str| {
            let (name, value) = line.split_once(':').expect("a field");
            format!("answer {}: {}", name.to_lowercase(), value.trim())
        };
        std::iter::once(format!("status {status}")).chain(head.lines().skip(1).map(line)).collect()
    }

    async fn http2(&self, caller: Caller, service: &str, request: &str, given: &[&str]) -> Vec<String> {
        let (mut sender, _task) = connect(self.mesh.local(service)).await;
        let (method, path) = request.split_once(' ').expect("METHOD /path");
        let mut message = Request::builder().method(method).uri(format!("http://{service}{path}"));
        message = message.header("x-caller", format!("{caller:?}"));
        if caller == Caller::Grpc {
            message = message.header("content-type", "application/grpc").header("te", "trailers");
        }
        for field in given {
            let (name, value) = field.split_once(": ").expect("name: value");
            message = message.header(name, value);
        }
        let sent = sender.send_request(message.body(()).expect("valid"), true).expect("open");
        let (head, mut body) = sent.0.await.unwrap_or_else(|error| panic!("{request}: {error}")).into_parts();
        drain(&mut body).await.unwrap_or_else(|error| panic!("{request}: {error}"));
        let trailers = body.trailers().await.unwrap_or_else(|error| panic!("{request}: {error}")).unwrap_or_default();
        let told = [fields(&head.headers), fields(&trailers)].concat();
        let told = told.into_iter().map(|line| format!("answer {line}"));
        std::iter::once(format!("status {}", head.status.as_u16())).chain(told).collect()
    }
}
