//! `ledger`: a line protocol over TCP. A line in is an entry, `OK <number>` is the answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::serve;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 4096;

/// Serves until the process ends.
pub async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    let entries = Arc::new(AtomicU64::new(0));
    loop {
        let stream = serve::accept(&listener).await;
        let entries = entries.clone();
        tokio::spawn(async move { answer(stream, &entries).await.ok() });
    }
}

async fn answer(stream: TcpStream, entries: &AtomicU64) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        (&mut stream).take(MAX_LINE).read_line(&mut line).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
        let number = entries.fetch_add(1, Ordering::Relaxed) + 1;
        stream.write_all(format!("OK {number}\n").as_bytes()).await?;
    }
}

/// Writes entries to a ledger; connections are kept.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<BufReader<TcpStream>>>>,
}

impl Client {
    /// A client of the ledger at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, idle: Arc::default() }
    }

    /// Writes one entry and returns its number.
    pub async fn write(&self, entry: &str) -> anyhow::Result<u64> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut stream = match kept {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address)
                    .await
                    .with_context(|| format!("connect to ledger at {}: refused; is it running", self.address))?;
                stream.set_nodelay(true).ok();
                BufReader::new(stream)
            }
        };
        stream.write_all(format!("{entry}\n").as_bytes()).await.context("write to the ledger")?;
        let mut line = String::new();
        (&mut stream).take(MAX_LINE).read_line(&mut line).await.context("read the ledger's answer")?;
        let Some(number) = line.trim_end().strip_prefix("OK ").and_then(|number| number.parse().ok()) else {
            bail!("ledger: {line:?}: expected `OK <number>`");
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        Ok(number)
    }
}
