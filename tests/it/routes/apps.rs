//! Callers and apps that write down what they get, line by line, for tables of what is to be among these lines.

use std::{
    sync::{Arc, Mutex, mpsc::Receiver},
    time::Instant,
};

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

/// An app in HTTP/2 whose paths say what it does: two of three requests to `/fails-twice` fail and all to `/fails-always`,
/// every second one to `/slow-once` and `/fails-then-hangs` and all to `/hang` get no answer, those to `/stalls` only the
/// begin of one. `/ill` is not available, `/sick` only at apps whose name ends with `-0`.
pub async fn app(name: &'static str, log: Log) -> std::net::SocketAddr {
    counting(name, log, Counts::default()).await
}

/// The same; what it counts it counts together with others.
pub async fn counting(name: &'static str, log: Log, counts: Counts) -> std::net::SocketAddr {
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
    let lower = lower.replace("slowonce", "slow-once");
    let (count, is) = (counts.next(&lower), |start: &str| lower.starts_with(start));
    if is("/hang")
        || (is("/slow-once") && count.is_multiple_of(2))
        || (is("/fails-then-hangs") && !count.is_multiple_of(2))
    {
        // Until the caller has enough of it.
        let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
        return End::Stays;
    }
    let _ = drain(&mut body).await;
    let fails = (is("/fails-twice") && count % 3 != 2) || is("/fails-always") || is("/fails-then-hangs");
    let ill = is("/ill") || (is("/sick") && name.ends_with("-0"));
    let grpc = head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    let mut answer = Response::new(());
    let names = [("x-app", name), ("x-set", "app"), ("x-add", "app"), ("x-remove", "app")];
    for (field, value) in names {
        answer.headers_mut().insert(field, http::HeaderValue::from_static(value));
    }
    if grpc {
        answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        let code = if ill { "14" } else { "10" };
        if fails || ill {
            answer.headers_mut().insert("grpc-status", http::HeaderValue::from_static(code));
            let _ = respond.send_response(answer, true);
        } else if let Ok(mut stream) = respond.send_response(answer, false) {
            let code = http::HeaderValue::from_static("0");
            let _ = stream.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), false);
            let _ = stream.send_trailers(HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), code)]));
        }
        return End::Stays;
    }
    if fails || ill {
        let status = if ill { http::StatusCode::SERVICE_UNAVAILABLE } else { http::StatusCode::INTERNAL_SERVER_ERROR };
        *answer.status_mut() = status;
    }
    if let Ok(mut stream) = respond.send_response(answer, false) {
        let stalls = is("/stalls");
        let _ = stream.send_data(Bytes::from_static(b"hello"), !stalls);
        if stalls {
            let _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
        }
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
    /// `answer name: value` for each field of the answer and its trailers, `body TEXT`, `cut` after it when that is not all,
    /// or `reset` in place of all this; `took N` milliseconds, `seen N` and the lines of the apps.
    pub async fn call(&self, caller: Caller, service: &str, request: &str, fields: &[&str]) -> Vec<String> {
        let began = Instant::now();
        let mut lines = match caller {
            Caller::Http1 => self.http1(service, request, fields),
            Caller::Http2 | Caller::Grpc => within(request, self.http2(caller, service, request, fields)).await,
        };
        lines.push(format!("took {}", began.elapsed().as_millis()));
        let seen = self.seen();
        let count = seen.iter().filter(|line| line.contains(" host: ")).count();
        lines.push(format!("seen {count}"));
        lines.extend(seen);
        lines
    }

    /// The lines of the apps since they were last asked for.
    pub fn seen(&self) -> Vec<String> {
        let mut seen = self.log.take();
        for head in self.other.try_iter() {
            seen.extend(head.lines().filter(|line| !line.is_empty()).map(|line| format!("at other {line}")));
        }
        seen
    }

    /// Where the client calls it: at a port of its own, else by its name.
    pub fn address(&self, service: &str) -> std::net::SocketAddr {
        self.mesh.declared(service).unwrap_or_else(|| self.mesh.outbound())
    }

    fn http1(&self, service: &str, request: &str, fields: &[&str]) -> Vec<String> {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let text =
            format!("{request} HTTP/1.1\r\nHost: {service}\r\nX-Caller: http1\r\nConnection: close\r\n{fields}\r\n");
        let (status, text) = match call(self.address(service), &text) {
            Ok(answer) => answer,
            // It was closed, whether or not there was something unread.
            Err(error) if error == "\"\"" || error.contains("reset by peer") => return vec!["reset".to_owned()],
            Err(error) => panic!("{request}: {error}"),
        };
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {text}"));
        let line = |line: &str| {
            let (name, value) = line.split_once(':').expect("a field");
            format!("answer {}: {}", name.to_lowercase(), value.trim())
        };
        let mut lines: Vec<_> =
            std::iter::once(format!("status {status}")).chain(head.lines().skip(1).map(line)).collect();
        let chunked = lines.iter().any(|line| line == "answer transfer-encoding: chunked");
        let data = if chunked { chunks(body) } else { body.to_owned() };
        lines.push(format!("body {data}"));
        if chunked && !body.ends_with("0\r\n\r\n") {
            lines.push("cut".to_owned());
        }
        lines
    }

    async fn http2(&self, caller: Caller, service: &str, request: &str, given: &[&str]) -> Vec<String> {
        let (mut sender, _task) = connect(self.address(service)).await;
        let message = message(caller, service, request, given);
        let sent = sender.send_request(message, true).expect("open");
        let (head, mut body) = match sent.0.await {
            Ok(answer) => answer.into_parts(),
            Err(error) if error.is_reset() => return vec!["reset".to_owned()],
            Err(error) => panic!("{request}: {error}"),
        };
        let (mut data, mut cut) = (Vec::new(), None);
        while let Some(more) = body.data().await {
            match more {
                Ok(more) => {
                    let _ = body.flow_control().release_capacity(more.len());
                    data.extend_from_slice(&more);
                }
                Err(error) if error.is_reset() => {
                    cut = Some("cut".to_owned());
                    break;
                }
                Err(error) => panic!("{request}: {error}"),
            }
        }
        let trailers = if cut.is_none() { body.trailers().await.ok().flatten() } else { None };
        let told = [fields(&head.headers), fields(&trailers.unwrap_or_default())].concat();
        let told = told.into_iter().map(|line| format!("answer {line}"));
        let body = format!("body {}", String::from_utf8_lossy(&data).trim_start_matches(['\0', '\x05']));
        std::iter::once(format!("status {}", head.status.as_u16())).chain(told).chain([body]).chain(cut).collect()
    }
}

/// The head of a request in HTTP/2.
pub fn message(caller: Caller, service: &str, request: &str, given: &[&str]) -> Request<()> {
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
    message.body(()).expect("valid")
}

/// The data of a chunked body, as far as it came.
fn chunks(body: &str) -> String {
    // Sizes and data take turns; data that has line ends is not asked for here.
    body.split("\r\n").skip(1).step_by(2).collect()
}
