//! A second try beside a slow first one.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::spawn_local, time::timeout};
use weft_policy::model::{BackendPolicy, OutlierDetection, RequestPolicy, Retry, RouteRule};

use super::net::{App, Net, Spoken, local, rule, to};

pub fn hedged() -> RouteRule {
    let retry = Retry { hedge_after: Some(Duration::from_millis(20)), ..Retry::default() };
    let requests = Arc::new(RequestPolicy { retry, ..RequestPolicy::default() });
    RouteRule { requests, ..rule(vec![to("web")]) }
}

/// An endpoint that accepts and never answers.
pub async fn silence() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    spawn_local(async move {
        let mut held = Vec::new();
        while let Ok((io, _)) = listener.accept().await {
            held.push(io);
        }
    });
    address
}

const REQUESTS: &str = "weft_http_requests_total{direction=\"outbound\",service=\"shop/web\",port=\"80\",tls=\"none\",";

#[tokio::test]
async fn an_endpoint_that_hangs_is_overtaken_and_in_the_end_left_out() {
    local(async {
        let app = App::start("web", &[]).await;
        // Judged before the budget of retries is used up.
        let outlier_detection = OutlierDetection { minimum_requests: 5, ..OutlierDetection::default() };
        let policy = BackendPolicy { outlier_detection, ..BackendPolicy::default() };
        let apps = [("web", app.address), ("web", silence().await)];
        let net = Net::under(policy, Spoken::Http1, &apps, hedged()).await;
        let mut sent = 0;
        while !net.shows("weft_upstream_ejected_endpoints{service=\"shop/web\",port=\"80\"} 1") {
            let answer = timeout(Duration::from_secs(5), net.get("/api", &[])).await;
            assert_eq!(answer.unwrap_or_else(|_| panic!("no answer to {sent}: {}", net.text())).status, 200);
            sent += 1;
            assert!(sent < 1000, "{}", net.text());
        }
        // What was given up is in nobody's books: one request of the caller is one request.
        net.metric(&format!("{REQUESTS}code_class=\"2xx\",version=\"1.1\"}} {sent}")).await;
        assert!(!net.text().lines().any(|line| line.starts_with(REQUESTS) && !line.contains("2xx")), "{}", net.text());
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_the_policy_does_not_try_again_is_final() {
    local(async {
        let net = Net::start(Spoken::Http1, &[("web", silence().await), ("web", not_found().await)], hedged()).await;
        for _ in 0..5 {
            let answer = timeout(Duration::from_secs(5), net.get("/api", &[])).await;
            assert_eq!(answer.expect("the first answer").status, 404);
        }
    })
    .await;
}

/// An endpoint that knows nothing of what it is asked.
async fn not_found() -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            spawn_local(async move {
                let mut head = [0; 2048];
                while io.read(&mut head).await.is_ok_and(|length| length > 0) {
                    io.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.expect("open");
                }
            });
        }
    });
    address
}
