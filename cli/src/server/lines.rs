//! Answers that go on: JSON documents, one a line, as they come.

use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::Value;

use super::{Call, CallError, Server, TIMEOUT, causes, refusal};

/// Longest line.
const LONGEST: usize = 16 * 1024 * 1024;

/// The lines of one answer.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    url: String,
}

impl Server {
    /// Begins an answer that goes on.
    pub async fn lines(&self, path: &str) -> Result<Lines, CallError> {
        let url = format!("{}{path}", self.url);
        let unreachable = |why| CallError::Unreachable { method: Method::GET, url: url.clone(), why };
        let request = Call::new(Method::GET, path).request().map_err(|error| unreachable(error.to_string()))?;
        let sent = tokio::time::timeout(TIMEOUT, self.client.send(request)).await;
        let late = || unreachable(format!("no answer in {} s", TIMEOUT.as_secs()));
        let response = sent.map_err(|_| late())?.map_err(|error| unreachable(causes(&error)))?;
        let (parts, body) = response.into_parts();
        if parts.status.is_success() {
            return Ok(Lines { body, buffer: BytesMut::new(), url });
        }
        let bytes = body.collect().await.map_err(|error| unreachable(causes(&error)))?.to_bytes();
        let otherwise =
            format!("GET {url}: status {}: {}", parts.status.as_u16(), String::from_utf8_lossy(&bytes).trim());
        let value = serde_json::from_slice(&bytes).unwrap_or_default();
        Err(CallError::Refused(Box::new(refusal(parts.status.as_u16(), value, otherwise))))
    }
}

impl Lines {
    /// The next document; none at the end.
    pub async fn next(&mut self) -> Result<Option<Value>, CallError> {
        let nonsense = |why| CallError::Nonsense { method: Method::GET, url: self.url.clone(), why };
        let mut looked = 0;
        loop {
            if let Some(end) = self.buffer[looked..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(looked + end + 1);
                looked = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|error| nonsense(format!("not JSON: {error}")));
            }
            looked = self.buffer.len();
            if looked > LONGEST {
                return Err(nonsense("a line without an end".to_owned()));
            }
            let frame = tokio::time::timeout(TIMEOUT, self.body.frame()).await;
            let late = |_| {
                let why = format!("nothing came in {} s", TIMEOUT.as_secs());
                CallError::Unreachable { method: Method::GET, url: self.url.clone(), why }
            };
            let frame = match frame.map_err(late)? {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let why = causes(&error);
                    return Err(CallError::Unreachable { method: Method::GET, url: self.url.clone(), why });
                }
            };
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
