//! `ledger`: `POST /entries` over HTTP makes an entry and answers with its number. Beside it a journal: a line
//! protocol over TCP, where a line in is kept and `OK <number>` is the answer. Bytes carry no trace context, so that the
//! connection of the journal, which many requests share, belongs to the trace of none of them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::serve;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 4096;

/// Serves until the process ends: the journal at `listen`, entries at the other address, if there is one.
pub async fn run(listen: SocketAddr, entries: Option<SocketAddr>) -> anyhow::Result<()> {
    let journal = serve::bind(listen).await?;
    if let Some(address) = entries {
        let (listener, count) = (serve::bind(address).await?, Arc::new(AtomicU64::new(0)));
        tokio::spawn(serve::http(listener, move |request| make_entry(request, count.clone())));
    }
    let lines = Arc::new(AtomicU64::new(0));
    loop {
        let stream = serve::accept(&journal).await;
        let lines = lines.clone();
        tokio::spawn(async move { answer(stream, &lines).await.ok() });
    }
}

/// `POST /entries`: the number of the entry.
async fn make_entry(request: Request<Incoming>, entries: Arc<AtomicU64>) -> anyhow::Result<Response<Full<Bytes>>> {
    if request.method() != Method::POST || request.uri().path() != "/entries" {
        return Ok(serve::not_found());
    }
    request.into_body().collect().await.context("read the entry: the body broke off")?;
    let number = entries.fetch_add(1, Ordering::Relaxed) + 1;
    Ok(serve::json(StatusCode::CREATED, &serde_json::json!({ "entry": number })))
}

async fn answer(stream: TcpStream, lines: &AtomicU64) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        (&mut stream).take(MAX_LINE).read_line(&mut line).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
        let number = lines.fetch_add(1, Ordering::Relaxed) + 1;
        stream.write_all(format!("OK {number}\n").as_bytes()).await?;
    }
}

/// Writes lines to a journal; connections are kept.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<BufReader<TcpStream>>>>,
}

impl Client {
    /// A client of the journal at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, idle: Arc::default() }
    }

    /// Writes one line and returns its number. A line may come twice: a kept connection may end at any time (its peer was
    /// restarted, its certificate has expired), and then the line is written over a new one.
    pub async fn write(&self, text: &str) -> anyhow::Result<u64> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(stream) = kept {
            match self.write_over(stream, text).await {
                Ok(number) => return Ok(number),
                // What ended one has probably ended them all.
                Err(_) => self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear(),
            }
        }
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("connect to ledger at {}: refused; is it running", self.address))?;
        stream.set_nodelay(true).ok();
        self.write_over(BufReader::new(stream), text).await
    }

    /// Writes one line over `stream` and keeps it.
    async fn write_over(&self, mut stream: BufReader<TcpStream>, text: &str) -> anyhow::Result<u64> {
        stream.write_all(format!("{text}\n").as_bytes()).await.context("write to the ledger")?;
        let mut line = String::new();
        (&mut stream).take(MAX_LINE).read_line(&mut line).await.context("read the ledger's answer")?;
        let Some(number) = line.trim_end().strip_prefix("OK ").and_then(|number| number.parse().ok()) else {
            bail!("ledger: {line:?}: expected `OK <number>`");
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_written_over_a_new_connection_when_kept_ones_have_ended() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        let lines = AtomicU64::new(0);
        let server = async {
            // Two connections that end after one line each, then one that stays.
            let (first, second) = (listener.accept().await.unwrap().0, listener.accept().await.unwrap().0);
            for stream in [first, second] {
                one(stream, &lines).await;
            }
            answer(listener.accept().await.unwrap().0, &lines).await.ok();
        };
        let calls = async {
            let (a, b) = tokio::join!(client.write("a"), client.write("b"));
            assert_eq!(a.unwrap() + b.unwrap(), 3);
            assert_eq!(client.write("c").await.unwrap(), 3);
            assert_eq!(client.write("d").await.unwrap(), 4);
        };
        tokio::select! { () = calls => {}, () = server => panic!("the server has ended") }
    }

    async fn one(stream: TcpStream, lines: &AtomicU64) {
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).await.unwrap();
        let number = lines.fetch_add(1, Ordering::Relaxed) + 1;
        stream.write_all(format!("OK {number}\n").as_bytes()).await.unwrap();
    }
}
