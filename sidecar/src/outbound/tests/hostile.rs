//! Callers that make up Hosts, paths, methods and headers: what they say is in no label.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::net::{App, Net, Spoken, local, rule, to};

/// Requests on their way at once.
const BATCH: u32 = 500;

/// Sends these requests one after the other on one connection and waits for as many answers.
async fn flood(io: &mut TcpStream, numbers: std::ops::Range<u32>, host: impl Fn(u32) -> String) {
    let expected = numbers.len();
    let requests: String = numbers
        .map(|number| {
            let (host, agent) = (host(number), format!("user-agent: a{number}\r\nx-request-id: i{number}"));
            // Letters alone: what begins otherwise is not taken for HTTP.
            let method: String = number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'A')).collect();
            format!("M{method} /api/p{number}?q={number} HTTP/1.1\r\nhost: {host}\r\n{agent}\r\n\r\n")
        })
        .collect();
    let (mut read, mut write) = io.split();
    let answers = async {
        let (mut answers, mut bytes) = (0, vec![0; 64 * 1024]);
        // The end of the buffer before, in case a status line is cut.
        let mut rest = Vec::new();
        while answers < expected {
            let length = read.read(&mut bytes).await.expect("open");
            assert!(length > 0, "closed after {answers} answers: {}", String::from_utf8_lossy(&bytes[..400]));
            rest.extend_from_slice(&bytes[..length]);
            let mark = b"HTTP/1.1 ";
            answers += rest.windows(mark.len()).filter(|window| window == mark).count();
            rest.drain(..rest.len().saturating_sub(mark.len() - 1));
        }
    };
    let both = async { tokio::join!(answers, async { write.write_all(requests.as_bytes()).await.expect("open") }) };
    timeout(Duration::from_secs(120), both).await.expect("answers in time");
}

#[tokio::test]
async fn a_hundred_thousand_hosts_paths_and_methods_make_no_series() {
    local(async {
        let app = App::start("web", &[]).await;
        let net = Net::start(Spoken::Http1, &[("web", app.address)], rule(vec![to("web")])).await;
        let mut io = TcpStream::connect(net.address()).await.expect("listens");
        // The first ones make what there is: of the service, of its connections, of what leads nowhere.
        flood(&mut io, 0..10, |_| "web.shop".into()).await;
        flood(&mut io, 0..10, |number| format!("h{number}.x.y")).await;
        let before = net.telemetry.snapshot().len();
        flood(&mut io, 10..1000, |_| "web.shop".into()).await;
        for start in (1000..100_000).step_by(BATCH as usize) {
            flood(&mut io, start..start + BATCH, |number| format!("h{number}.x.y:{}", number % 60_000)).await;
        }
        assert_eq!(net.telemetry.snapshot().len(), before, "{}", net.text());
    })
    .await;
}
