//! Sessions: requests that bring their token back go to the endpoint that began the session, while it is there.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::HeaderName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::spawn_local,
};
use weft_policy::{
    model::{Carrier, RouteRule, Session, SessionKey, WeightedBackend},
    session::{self, Token},
};

use super::{
    hedging::hedged,
    net::{ALL, Answer, App, Net, Spoken, local, rule, target, to},
};
use crate::outbound::Sealers;

const NAME: &str = "sid";

fn cookie() -> Session {
    let carrier = Carrier::Cookie { name: NAME.into(), permanent: true };
    Session { carrier, absolute: Some(Duration::from_secs(3600)), idle: None, key: Some(SessionKey([3; 32])) }
}

fn sessions(session: Session, backends: Vec<WeightedBackend>) -> RouteRule {
    RouteRule { session: Some(Box::new(session)), ..rule(backends) }
}

/// The cookie of an answer, as the caller sends it back.
fn cookie_of(answer: &Answer) -> Option<String> {
    let line = answer.headers.get("set-cookie")?.to_str().expect("text");
    Some(line.split_once(';').expect("attributes").0.to_owned())
}

#[tokio::test]
async fn a_cookie_keeps_a_caller_at_its_endpoint_and_is_given_once() {
    local(async {
        for spoken in ALL {
            let (one, two) = (App::start("one", &[]).await, App::start("two", &[]).await);
            let apps = [("web", one.address), ("web", two.address)];
            let net = Net::start(spoken, &apps, sessions(cookie(), vec![to("web")])).await;
            let mut begun = 0;
            for _ in 0..8 {
                let first = net.get("/api", &[]).await;
                let line = first.headers["set-cookie"].to_str().expect("text").to_owned();
                assert!(line.starts_with("sid="), "{line}");
                assert!(line.ends_with("; Path=/api; Max-Age=3600; HttpOnly; SameSite=Strict"), "{line}");
                assert!(!line.contains("127.0.0.1"), "{line}");
                let cookie = cookie_of(&first).expect("a cookie");
                for _ in 0..6 {
                    let again = net.get("/api/more", &[("cookie", &format!("a=b; {cookie}"))]).await;
                    assert_eq!(again.body, first.body, "{spoken:?}");
                    assert_eq!(cookie_of(&again), None, "the caller has it");
                }
                begun += 1;
            }
            assert_eq!(one.count() + two.count(), begun * 7);
            assert!(one.count() > 0 && two.count() > 0, "sessions begin at either: {} {}", one.count(), two.count());
        }
    })
    .await;
}

#[tokio::test]
async fn a_header_does_the_same() {
    local(async {
        let (one, two) = (App::start("one", &[]).await, App::start("two", &[]).await);
        let apps = [("web", one.address), ("web", two.address)];
        let session = Session { carrier: Carrier::Header(HeaderName::from_static("x-session")), ..cookie() };
        let net = Net::start(Spoken::Grpc, &apps, sessions(session, vec![to("web")])).await;
        let first = net.get("/api", &[]).await;
        let token = first.headers["x-session"].to_str().expect("text").to_owned();
        for _ in 0..12 {
            let again = net.get("/api", &[("x-session", &token)]).await;
            assert_eq!(again.body, first.body);
            assert!(!again.headers.contains_key("x-session"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_keeps_its_backend_even_when_that_has_no_weight_any_more() {
    local(async {
        let (one, two) = (App::start("one", &[]).await, App::start("two", &[]).await);
        let apps = [("web", one.address), ("other", two.address)];
        let weighted = |name, weight| WeightedBackend { weight, ..to(name) };
        let split = |web, other| {
            let rule = sessions(cookie(), vec![weighted("web", web), weighted("other", other)]);
            RouteRule { total_weight: u64::from(web + other), ..rule }
        };
        let before = Net::start(Spoken::Http1, &apps, split(0, 1)).await;
        let first = before.get("/api", &[]).await;
        assert_eq!(first.body, "two");
        let cookie = cookie_of(&first).expect("a cookie");
        // Another sidecar, and the weights have changed.
        let after = Net::start(Spoken::Http1, &apps, split(1, 0)).await;
        for _ in 0..4 {
            assert_eq!(after.get("/api", &[("cookie", &cookie)]).await.body, "two");
            assert_eq!(after.get("/api", &[]).await.body, "one", "new ones follow the weights");
        }
    })
    .await;
}

#[tokio::test]
async fn when_the_endpoint_is_gone_another_takes_the_session() {
    local(async {
        let (one, two) = (App::start("one", &[]).await, App::start("two", &[]).await);
        let alone = Net::start(Spoken::Http1, &[("web", one.address)], sessions(cookie(), vec![to("web")])).await;
        let cookie_to_one = cookie_of(&alone.get("/api", &[]).await).expect("a cookie");
        let without = Net::start(Spoken::Http1, &[("web", two.address)], sessions(cookie(), vec![to("web")])).await;
        let moved = without.get("/api", &[("cookie", &cookie_to_one)]).await;
        assert_eq!((moved.status, &moved.body[..]), (200, &b"two"[..]));
        assert!(cookie_of(&moved).is_some_and(|cookie| cookie != cookie_to_one), "the caller is told");
    })
    .await;
}

#[tokio::test]
async fn a_failing_endpoint_loses_the_session_to_the_one_that_answers() {
    local(async {
        let two = App::start("two", &[]).await;
        // A listener that is dropped while the session is with it.
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let gone = socket.local_addr().expect("bound");
        let both = [("web", gone), ("web", two.address)];
        let net = Net::start(Spoken::Http1, &both, sessions(cookie(), vec![to("web")])).await;
        drop(socket);
        let mut cookie = None;
        for _ in 0..16 {
            let fields: Vec<(&str, &str)> = cookie.iter().map(|cookie: &String| ("cookie", cookie.as_str())).collect();
            let answer = net.get("/api", &fields).await;
            assert_eq!(&answer.body[..], b"two");
            cookie = cookie_of(&answer).or(cookie);
        }
        assert!(cookie.is_some());
    })
    .await;
}

#[tokio::test]
async fn a_session_whose_endpoint_is_slow_is_not_hedged_away() {
    local(async {
        let (slow, two) = (slow().await, App::start("two", &[]).await);
        let rule = RouteRule { requests: hedged().requests, ..sessions(cookie(), vec![to("web")]) };
        let net = Net::start(Spoken::Http1, &[("web", slow), ("web", two.address)], rule).await;
        let answer = net.get("/api", &[("cookie", &bound_to(slow))]).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"slow"[..]));
        assert_eq!((cookie_of(&answer), two.count()), (None, 0));
    })
    .await;
}

#[tokio::test]
async fn one_failure_does_not_move_a_session_whose_endpoint_is_in() {
    local(async {
        let two = App::start("two", &[]).await;
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let refusing = socket.local_addr().expect("bound");
        drop(socket);
        let both = [("web", refusing), ("web", two.address)];
        let net = Net::start(Spoken::Http1, &both, sessions(cookie(), vec![to("web")])).await;
        let answer = net.get("/api", &[("cookie", &bound_to(refusing))]).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"two"[..]));
        assert_eq!(cookie_of(&answer), None, "the session stays where it is");
    })
    .await;
}

/// The cookie of a session with this endpoint.
fn bound_to(endpoint: SocketAddr) -> String {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let began = u32::try_from(began).expect("this century");
    let endpoint = session::of_endpoint(endpoint, None);
    let token = Token { began, seen: began, backend: session::of_target(&target("web")), endpoint };
    let sealed = Sealers::new(SessionKey([0; 32])).seal(&cookie(), token, &mut || 4).expect("sealed");
    format!("{NAME}={sealed}")
}

/// An endpoint that takes ten times as long as a second try waits.
async fn slow() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            spawn_local(async move {
                let mut head = [0; 2048];
                while io.read(&mut head).await.is_ok_and(|length| length > 0) {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_token_that_nobody_made_or_that_is_over_is_worth_nothing() {
    local(async {
        let app = App::start("one", &[]).await;
        let apps = [("web", app.address)];
        let net = Net::start(Spoken::Http1, &apps, sessions(cookie(), vec![to("web")])).await;
        let cookie_line = cookie_of(&net.get("/api", &[]).await).expect("a cookie");
        for line in ["sid=", "sid=AAAA", &format!("{cookie_line}x"), &cookie_line[..20]] {
            let answer = net.get("/api", &[("cookie", line)]).await;
            assert!(answer.status == 200 && cookie_of(&answer).is_some(), "{line}: a session begins");
        }
        // One of a minute ago.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let began = u32::try_from(now - 60).expect("this century");
        let endpoint = session::of_endpoint(app.address, None);
        let token = Token { began, seen: began, backend: session::of_target(&target("web")), endpoint };
        let sealed = Sealers::new(SessionKey([0; 32])).seal(&cookie(), token, &mut || 4).expect("sealed");
        let old = format!("sid={sealed}");
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let limits = [(seconds(59), None, true), (None, seconds(59), true), (seconds(3600), None, false)];
        for (absolute, idle, begins) in limits {
            let carrier = Carrier::Cookie { name: NAME.into(), permanent: false };
            let session = Session { carrier, absolute, idle, ..cookie() };
            let net = Net::start(Spoken::Http1, &apps, sessions(session, vec![to("web")])).await;
            let given = cookie_of(&net.get("/api", &[("cookie", &old)]).await);
            assert_eq!(given.is_some(), begins, "{absolute:?} {idle:?}");
        }
        // With an idle time each answer says that it was not idle.
        let session = Session { idle: Some(Duration::from_secs(60)), ..cookie() };
        let net = Net::start(Spoken::Http1, &apps, sessions(session, vec![to("web")])).await;
        let refreshed = cookie_of(&net.get("/api", &[("cookie", &cookie_line)]).await).expect("refreshed");
        assert_ne!(refreshed, cookie_line);
    })
    .await;
}
