//! Three services in a row, `front`, `middle` and `back`, whose apps hand on what they are told of the trace, and a
//! collector in the control plane.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use weft_examples::context::FIELDS;

use super::websocket;
use crate::{
    http2::{self, End, within},
    mesh::{TestMesh, Workload},
    net::{call, connect, eventually, free},
    routes::apps::Caller,
};

/// What `back` answers: a status (a gRPC code for gRPC), `hang`, or `first-N`, which is N once in each trace. Another app
/// answers itself where the value ends in `at NAME`. With `loses` the apps do not hand on the trace.
pub const ANSWER: &str = "x-answer";

/// A field: its name in lower case, and its value.
pub type Field = (String, String);

/// The mesh, and what its apps were told.
pub struct Chain {
    pub mesh: TestMesh,
    /// Where the control plane takes spans.
    pub otlp: SocketAddr,
    caller: Caller,
    seen: Seen,
}

/// An app, and the fields of a request that came to it.
type Told = (&'static str, Vec<Field>);

/// Newest last.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Told>>>);

#[derive(Clone)]
struct App {
    name: &'static str,
    next: Option<(&'static str, SocketAddr)>,
    caller: Caller,
    seen: Seen,
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

/// What an app does with a request.
enum Does {
    Answers(u16),
    Hangs,
    Asks(SocketAddr, &'static str),
}

fn fields(headers: &HeaderMap) -> Vec<Field> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// The value of a field that is there once.
pub fn field<'a>(fields: &'a [Field], name: &str) -> Option<&'a str> {
    let mut values = fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let first = values.next();
    assert_eq!(values.next(), None, "{name} is there twice: {fields:?}");
    first
}

/// What an app tells the next one: everything of the trace, unless it is one that loses it.
fn copied(fields: &[Field]) -> Vec<Field> {
    let loses = field(fields, ANSWER) == Some("loses");
    fields
        .iter()
        .filter(|(name, _)| *name == ANSWER || !loses)
        .filter(|(name, _)| *name == ANSWER || FIELDS.contains(&name.as_str()))
        .cloned()
        .collect()
}

impl App {
    fn asked(&self, fields: &[Field]) -> Does {
        self.seen.0.lock().expect("no panic").push((self.name, fields.to_vec()));
        let answer = field(fields, ANSWER).unwrap_or("");
        let (answer, at) = answer.split_once(" at ").unwrap_or((answer, "back"));
        if let Some((service, address)) = self.next.filter(|_| at != self.name) {
            return Does::Asks(address, service);
        }
        let fine = if self.caller == Caller::Grpc { 0 } else { 200 };
        if answer == "hang" {
            return Does::Hangs;
        }
        if let Some(first) = answer.strip_prefix("first-") {
            let trace = field(fields, "traceparent").unwrap_or("").split('-').nth(1).unwrap_or("").to_owned();
            let mut asked = self.asked.lock().expect("no panic");
            let count = asked.entry(trace).or_default();
            *count += 1;
            return Does::Answers(if *count == 1 { first.parse().expect("a status") } else { fine });
        }
        Does::Answers(answer.parse().unwrap_or(fine))
    }

    /// Serves HTTP/1.1, a request on each connection.
    fn serve1(self) -> SocketAddr {
        let listener = TcpListener::bind(free()).expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let app = self.clone();
                std::thread::spawn(move || app.serve1_one(stream));
            }
        });
        address
    }

    fn serve1_one(&self, mut stream: TcpStream) {
        let (mut head, mut bytes) = (Vec::new(), [0; 4096]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut bytes) {
                Ok(length @ 1..) => head.extend(&bytes[..length]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let fields: Vec<Field> = head.lines().skip(1).filter_map(line).collect();
        let target = head.split(' ').nth(1).unwrap_or("/");
        let status = match self.asked(&fields) {
            Does::Answers(status) => status,
            Does::Hangs => {
                // Until the caller has enough of it.
                let _ = stream.read(&mut bytes);
                return;
            }
            Does::Asks(address, service) if websocket::asks(&fields) => {
                return websocket::pass(stream, address, service, target, &copied(&fields));
            }
            Does::Asks(address, service) => {
                get(address, service, target, &copied(&fields)).map_or(500, |(status, _)| status)
            }
        };
        if websocket::asks(&fields) && status == 200 {
            return websocket::echo(stream);
        }
        let _ = write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }

    async fn serve2(self) -> SocketAddr {
        http2::serve(move |request, respond| self.clone().serve2_one(request, respond)).await
    }

    async fn serve2_one(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> End {
        let fields = fields(request.headers());
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let status = match self.asked(&fields) {
            Does::Answers(status) => status,
            Does::Hangs => {
                let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
                return End::Stays;
            }
            Does::Asks(address, service) => send2(self.caller, address, service, target, &copied(&fields)).await,
        };
        if self.caller != Caller::Grpc {
            let answer = Response::builder().status(status).body(()).expect("valid");
            if let Ok(mut stream) = respond.send_response(answer, false) {
                let _ = stream.send_data(Bytes::from_static(b"ok"), true);
            }
            return End::Stays;
        }
        let mut answer = Response::new(());
        answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let code = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from(status))]);
        if status == 0 {
            // The code of what goes well comes in trailers, other codes in the head.
            if let Ok(mut stream) = respond.send_response(answer, false) {
                let _ = stream.send_trailers(code);
            }
        } else {
            answer.headers_mut().extend(code);
            let _ = respond.send_response(answer, true);
        }
        End::Stays
    }
}

fn get(address: SocketAddr, host: &str, target: &str, fields: &[Field]) -> Result<(u16, String), String> {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    call(address, &format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n"))
}

/// The status, or the gRPC code.
async fn send2(caller: Caller, address: SocketAddr, host: &str, target: &str, fields: &[Field]) -> u16 {
    within(target, async {
        let (mut sender, _task) = http2::connect(address).await;
        let mut request = Request::builder().uri(format!("http://{host}{target}"));
        if caller == Caller::Grpc {
            request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in fields {
            request = request.header(name, value);
        }
        let (answer, _) = sender.send_request(request.body(()).expect("valid"), true).expect("open");
        let (head, mut body) = answer.await.expect("an answer").into_parts();
        let _ = http2::drain(&mut body).await;
        if caller != Caller::Grpc {
            return head.status.as_u16();
        }
        assert_eq!(head.status, StatusCode::OK);
        let trailers = body.trailers().await.expect("trailers").unwrap_or_default();
        let code = head.headers.get("grpc-status").or_else(|| trailers.get("grpc-status")).expect("a code").clone();
        code.to_str().expect("ASCII").parse().expect("a number")
    })
    .await
}

fn protocol(caller: Caller) -> &'static str {
    match caller {
        Caller::Http1 => "http",
        Caller::Http2 => "http2",
        Caller::Grpc => "grpc",
    }
}

impl Chain {
    /// The mesh; its sidecars send spans of so many percent of the traces that begin at them to `collector`, or to the
    /// control plane.
    pub async fn start(name: &str, caller: Caller, percent: u32, collector: Option<SocketAddr>) -> Self {
        let (own, seen) = (free(), Seen::default());
        let app = |name, next| {
            let (seen, asked) = (seen.clone(), Arc::default());
            let app = App { name, next, caller, seen, asked };
            async move { if caller == Caller::Http1 { app.serve1() } else { app.serve2().await } }
        };
        let (to_back, to_middle) = (free(), free());
        let back = app("back", None).await;
        let middle = app("middle", Some(("back", to_back))).await;
        let front = app("front", Some(("middle", to_middle))).await;
        let kind = protocol(caller);
        let resources = include_str!("chain.yaml")
            .replace("COLLECTOR", &collector.unwrap_or(own).to_string())
            .replace("PERCENT", &percent.to_string());
        let mesh = TestMesh::builder(name)
            .flag("--otlp-listen", &own.to_string())
            .resource("chain.yaml", resources)
            .replicas("back", kind, &[back])
            .outside("gone", kind, &[free()])
            .workload(Workload::beside("middle", middle, kind).calling("back", to_back))
            .workload(Workload::beside("front", front, kind).calling("middle", to_middle))
            .calls("front")
            .calls("gone")
            .start();
        let chain = Self { mesh, otlp: own, caller, seen };
        for _ in 0..100 {
            if chain.send("front", "/warm/Up", &[("traceparent", &unsampled())]).await == chain.fine() {
                return chain;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the chain does not answer; its logs are in {}", chain.mesh.dir.display());
    }

    /// The status, or gRPC code, of success.
    pub fn fine(&self) -> u16 {
        if self.caller == Caller::Grpc { 0 } else { 200 }
    }

    /// The client calls a service: the status, or the gRPC code.
    pub async fn send(&self, service: &str, target: &str, given: &[(&str, &str)]) -> u16 {
        let given: Vec<Field> = given.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let address = self.mesh.local(service);
        match self.caller {
            Caller::Http1 => get(address, service, target, &given).expect("an answer").0,
            caller => send2(caller, address, service, target, &given).await,
        }
    }

    /// The client calls the chain many times on one connection, `front` answers itself: what was answered with anything
    /// but success. Over HTTP/2 only.
    pub async fn flood(&self, count: usize, fields: &[(&str, &str)]) -> usize {
        let (mut sender, _task) = http2::connect(self.mesh.local("front")).await;
        let mut failed = 0;
        for _ in 0..count {
            let mut request = Request::builder().uri("http://front/flood").header(ANSWER, "200 at front");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            sender = within("a stream", sender.ready()).await.expect("a stream");
            let (answer, _) = sender.send_request(request.body(()).expect("valid"), true).expect("open");
            let (head, mut body) = within("an answer", answer).await.expect("an answer").into_parts();
            let whole = within("a body", http2::drain(&mut body)).await.is_ok();
            failed += usize::from(head.status != StatusCode::OK || !whole);
        }
        failed
    }

    /// What an app was told last.
    pub fn told(&self, app: &str) -> Vec<Field> {
        let seen = self.seen.0.lock().expect("no panic");
        seen.iter().rev().find(|(name, _)| *name == app).unwrap_or_else(|| panic!("nothing came to {app}")).1.clone()
    }
}

/// A context that nobody records.
fn unsampled() -> String {
    "00-000000000000000000000000000000ff-00f067aa0ba902b7-00".into()
}

/// Accepts, reads and never answers.
pub fn stalled() -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || while let Ok(1..) = stream.read(&mut [0; 4096]) {});
        }
    });
    address
}

/// That something has come to listen.
pub fn listens(address: SocketAddr) {
    eventually("a listener", || connect(address).map(drop));
}
