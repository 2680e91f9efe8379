//! One table of messages, carried for callers of both HTTP versions to apps of both: what goes in comes out.

mod ends;

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};

use crate::mesh::{TestMesh, Workload};

type Body = BoxBody<Bytes, Infallible>;

fn full(bytes: &'static [u8]) -> Body {
    Full::new(Bytes::from_static(bytes)).boxed()
}

/// A body of unknown length, which may end with trailers.
fn streamed(parts: &[Bytes], trailers: Option<HeaderMap>) -> Body {
    let parts = parts.iter().cloned().map(Frame::data);
    let frames: Vec<Result<_, Infallible>> = parts.chain(trailers.map(Frame::trailers)).map(Ok).collect();
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

/// A message at its receiver.
struct Received {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Received {
    fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }
}

/// A row: what is sent, and what must come back.
struct Row {
    name: &'static str,
    request: Request<Body>,
    check: fn(&Received),
}

fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path)
}

fn row(name: &'static str, request: http::Result<Request<Body>>, check: fn(&Received)) -> Row {
    Row { name, request: request.expect("valid"), check }
}

/// The app: `/echo` gives the request back, the other paths are answers of their own.
async fn answer(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await;
    let mut response = Response::builder().header("x-seen", format!("{} {}", head.method, head.uri.path()));
    let Ok(body) = body else { return response.status(400).body(full(b"truncated")).expect("valid") };
    let sum = HeaderMap::from_iter([(header::HeaderName::from_static("x-sum"), HeaderValue::from_static("42"))]);
    let path = head.uri.path();
    response = match path {
        "/no-content" => response.status(204),
        "/not-modified" => response.status(304).header("etag", "\"1\""),
        "/cookies" => (0..60).fold(response, |response, n| response.header("set-cookie", format!("c{n}={n}"))),
        "/count" => {
            let own = head.headers.keys().filter(|name| name.as_str().starts_with("x-field-"));
            response.header("x-count", own.count())
        }
        "/teapot" => response.status(418),
        "/echo" => {
            let host = head.headers.get("host").and_then(|host| host.to_str().ok());
            let host = host.or(head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default().to_owned();
            let query = head.uri.query().unwrap_or_default().to_owned();
            let own = head.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-"));
            own.fold(response.header("x-host", host).header("x-query", query), |response, (name, value)| {
                response.header(name, value)
            })
        }
        _ => response,
    };
    let trailers = body.trailers().cloned();
    let body = match path {
        "/trailers" => {
            response = response.header("trailer", "x-sum");
            streamed(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")], Some(sum))
        }
        "/chunks" => streamed(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")], None),
        "/echo" if trailers.is_some() => {
            response = response.header("trailer", "x-sum");
            streamed(&[body.to_bytes()], trailers)
        }
        "/echo" => Full::new(body.to_bytes()).boxed(),
        "/no-content" | "/not-modified" => full(b""),
        // hyper drops a body for HEAD in HTTP/1.1 but not in HTTP/2, where it would break the stream.
        _ if head.method == Method::HEAD => {
            response = response.header("content-length", "5");
            full(b"")
        }
        _ => full(b"hello"),
    };
    response.body(body).expect("valid")
}

fn plain() -> Vec<Row> {
    let ok = |got: &Received| assert_eq!(got.status, 200);
    vec![
        row("GET", request(Method::GET, "/page?a=1&b=%2F").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), &got.body[..]), (200, &b"hello"[..]));
            assert_eq!(got.field("x-seen"), "GET /page");
            assert_eq!(got.field("content-length"), "5");
        }),
        row("HEAD", request(Method::HEAD, "/page").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), got.body.len()), (200, 0));
            assert_eq!(got.field("content-length"), "5", "the length of what GET would give");
            assert_eq!(got.field("x-seen"), "HEAD /page");
        }),
        row("GET of chunks", request(Method::GET, "/chunks").body(full(b"")), |got| {
            assert_eq!(&got.body[..], b"onetwo");
            assert_eq!(got.field("content-length"), "");
        }),
        row("query and Host", request(Method::GET, "/echo?q=%7B%7D&q=2").body(full(b"")), |got| {
            assert_eq!(got.field("x-query"), "q=%7B%7D&q=2");
            assert_eq!(got.field("x-host"), "app.example");
        }),
        row("DELETE without a body", request(Method::DELETE, "/echo").body(full(b"")), |got| {
            assert_eq!((got.field("x-seen"), got.body.len()), ("DELETE /echo", 0));
        }),
        row("OPTIONS", request(Method::OPTIONS, "/echo").body(full(b"")), ok),
        row("an error status", request(Method::GET, "/teapot").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), &got.body[..]), (418, &b"hello"[..]));
        }),
        row("204", request(Method::GET, "/no-content").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), got.body.len()), (204, 0));
            assert_eq!(got.field("content-length"), "", "RFC 9110 section 8.6");
        }),
        row("304", request(Method::GET, "/not-modified").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), got.body.len(), got.field("etag")), (304, 0, "\"1\""));
        }),
        row("304 of HEAD", request(Method::HEAD, "/not-modified").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), got.body.len(), got.field("etag")), (304, 0, "\"1\""));
        }),
    ]
}

fn with_bodies() -> Vec<Row> {
    let megabyte = streamed(&vec![Bytes::from_static(&[b'm'; 16 * 1024]); 64], None);
    let sum = HeaderMap::from_iter([(header::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
    let trailing = request(Method::POST, "/echo").header("te", "trailers").header("trailer", "x-sum");
    vec![
        row("POST", request(Method::POST, "/echo").body(full(b"question")), |got| {
            assert_eq!((got.field("x-seen"), &got.body[..]), ("POST /echo", &b"question"[..]));
        }),
        row("POST of nothing", request(Method::POST, "/echo").body(full(b"")), |got| {
            assert_eq!((got.status.as_u16(), got.body.len()), (200, 0));
        }),
        row("PUT of chunks", request(Method::PUT, "/echo").body(megabyte), |got| {
            assert_eq!(got.body.len(), 1024 * 1024);
            assert!(got.body.iter().all(|byte| *byte == b'm'));
        }),
        row(
            "POST that expects 100",
            request(Method::POST, "/echo").header("expect", "100-continue").body(full(b"q")),
            |got| {
                assert_eq!((got.status.as_u16(), &got.body[..]), (200, &b"q"[..]));
            },
        ),
        row(
            "trailers of the answer",
            request(Method::GET, "/trailers").header("te", "trailers").body(full(b"")),
            |got| {
                assert_eq!(&got.body[..], b"onetwo");
                assert_eq!(got.trailers.get("x-sum"), Some(&HeaderValue::from_static("42")));
            },
        ),
        row("trailers both ways", trailing.body(streamed(&[Bytes::from_static(b"body")], Some(sum))), |got| {
            assert_eq!(&got.body[..], b"body");
            assert_eq!(got.trailers.get("x-sum"), Some(&HeaderValue::from_static("7")));
        }),
    ]
}

fn with_fields() -> Vec<Row> {
    let fields = |path: &str, count: usize| {
        let name = |n| format!("x-field-{n}");
        (0..count).fold(request(Method::GET, path), |builder, n| builder.header(name(n), format!("value {n}")))
    };
    let several = request(Method::GET, "/echo").header("x-list", "a").header("x-list", "b").header("x-list", "c, d");
    let connection = request(Method::GET, "/echo").header("x-kept", "yes");
    vec![
        row("100 fields", fields("/echo", 100).body(full(b"")), |got| {
            assert_eq!(got.status, 200);
            (0..100).for_each(|n| assert_eq!(got.field(&format!("x-field-{n}")), format!("value {n}")));
        }),
        // With Host these are the 128 that a request may have.
        row("127 fields", fields("/count", 127).body(full(b"")), |got| assert_eq!(got.field("x-count"), "127")),
        row("200 fields", fields("/count", 200).body(full(b"")), |got| assert_eq!(got.status, 431)),
        row(
            "a field of 40 KiB",
            request(Method::GET, "/echo").header("x-big", "b".repeat(40 << 10)).body(full(b"")),
            |got| {
                assert_eq!((got.status.as_u16(), got.field("x-big").len()), (200, 40 << 10));
            },
        ),
        row(
            "a field of 80 KiB",
            request(Method::GET, "/echo").header("x-big", "b".repeat(80 << 10)).body(full(b"")),
            |got| {
                assert_eq!(got.status, 431);
            },
        ),
        row("a field thrice", several.body(full(b"")), |got| {
            let all: Vec<_> = got.headers.get_all("x-list").iter().collect();
            assert_eq!(all, ["a", "b", "c, d"], "in order");
        }),
        row(
            "a field of bytes",
            request(Method::GET, "/echo")
                .header("x-bytes", HeaderValue::from_bytes(b"caf\xe9").expect("valid"))
                .body(full(b"")),
            |got| {
                assert_eq!(got.headers.get("x-bytes").map(HeaderValue::as_bytes), Some(&b"caf\xe9"[..]));
            },
        ),
        row("many cookies set", request(Method::GET, "/cookies").body(full(b"")), |got| {
            let all: Vec<_> = got.headers.get_all("set-cookie").iter().collect();
            assert_eq!(all.len(), 60);
            assert_eq!((all[0], all[59]), (&HeaderValue::from_static("c0=0"), &HeaderValue::from_static("c59=59")));
        }),
        row("a field that is kept", connection.body(full(b"")), |got| assert_eq!(got.field("x-kept"), "yes")),
    ]
}

/// The whole table through one mesh, for callers of both versions.
async fn table(name: &str, protocol: &str, app: SocketAddr) {
    let mesh = TestMesh::builder(name).workload(Workload::beside("app", app, protocol)).calls("app").start();
    let local = mesh.local("app");
    for http2 in [false, true] {
        for Row { name, request, check } in [plain(), with_bodies(), with_fields()].into_iter().flatten() {
            eprintln!("{name}: caller in HTTP/{}, app declared {protocol}", if http2 { 2 } else { 1 });
            check(&ends::call(local, http2, request).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_messages_reaches_an_http1_app_for_callers_of_both_versions() {
    table("table-1", "http", ends::serve(false, answer).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_messages_reaches_an_http2_app_for_callers_of_both_versions() {
    table("table-2", "http2", ends::serve(true, answer).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_waits_for_100_continue_gets_it_and_then_its_answer() {
    for (protocol, http2) in [("http", false), ("http2", true)] {
        let app = ends::serve(http2, answer).await;
        let builder = TestMesh::builder(&format!("continue-{protocol}"));
        let mesh = builder.workload(Workload::beside("app", app, protocol)).calls("app").start();
        let head = "POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\
                    Connection: close\r\n\r\n";
        let (interim, answer) = ends::call_after_continue(mesh.local("app"), head, b"question").await;
        assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("question"), "{answer}");
    }
}
