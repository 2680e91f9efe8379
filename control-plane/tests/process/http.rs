//! A client of the operator API that hides nothing: one connection, and a failure of it is told as one.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

/// An answer that takes longer does not come.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection.
pub struct Client {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub code: u16,
    /// The body when it is JSON, else null.
    pub body: Value,
    /// The body.
    pub text: String,
    head: String,
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream: BufReader::new(stream), address })
    }

    /// Sends JSON and reads the answer.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<Reply> {
        self.send_as(method, path, "application/json", body.as_bytes())
    }

    /// Sends a body of this type, and reads the answer.
    pub fn send_as(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> io::Result<Reply> {
        let fields = format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len());
        self.head(method, path, &fields)?;
        self.write(body)?;
        self.reply()
    }

    /// Sends the head of a request: `fields` beside the host, each with its line end.
    pub fn head(&mut self, method: &str, path: &str, fields: &str) -> io::Result<()> {
        let host = self.address;
        self.write(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n").as_bytes())
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads an answer to its end.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut reply = self.reply_head()?;
        let mut bytes = Vec::new();
        if reply.field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            while let chunk = self.chunk()?
                && !chunk.is_empty()
            {
                bytes.extend(chunk);
            }
        } else {
            let length = reply.field("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            bytes.resize(length, 0);
            self.stream.read_exact(&mut bytes)?;
        }
        reply.text = String::from_utf8_lossy(&bytes).into_owned();
        reply.body = serde_json::from_str(&reply.text).unwrap_or_default();
        Ok(reply)
    }

    /// Reads the head of an answer whose body is read in [`chunk`](Self::chunk)s.
    pub fn reply_head(&mut self) -> io::Result<Reply> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the answer ends early: {head:?}")));
            }
        }
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| io::Error::other(format!("no answer of HTTP: {head:?}")))?;
        Ok(Reply { code, body: Value::Null, text: String::new(), head })
    }

    /// The next chunk of a body; empty at its end.
    pub fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let length =
            usize::from_str_radix(line.trim(), 16).map_err(|error| io::Error::other(format!("{error}: {line:?}")))?;
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

impl Reply {
    fn field(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(':').is_some_and(|(field, _)| field.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| of(line)).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    }

    /// Asserts that it is a `Status` with this code and reason, and gives its message.
    pub fn failed(&self, code: u16, reason: &str) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!((&self.body["kind"], &self.body["status"]), (&"Status".into(), &"Failure".into()), "{self:?}");
        assert_eq!((&self.body["code"], &self.body["reason"]), (&code.into(), &reason.into()), "{self:?}");
        self.body["message"].as_str().expect("a message")
    }

    /// `metadata.resourceVersion`.
    pub fn revision(&self) -> u64 {
        let text = self.body["metadata"]["resourceVersion"].as_str();
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no resourceVersion: {self:?}"))
    }
}
