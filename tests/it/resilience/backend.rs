//! Apps that do exactly what a test says, in HTTP/1.1 with keep-alive: they count what reaches them, answer, hang,
//! reset, close at bad moments, stop listening and listen again.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::net::free;

/// A request that has been read to its end.
pub struct Request {
    /// Request line and fields.
    pub head: String,
    /// Without framing.
    pub body: Vec<u8>,
    /// Trailer lines.
    pub trailers: String,
}

/// What a backend does with a request.
pub enum Reply {
    /// An answer, and what becomes of its connection.
    Answer(u16, String, After),
    /// None for as long as the caller waits; its going away is counted.
    Hang,
    /// None: the connection is reset.
    Reset,
}

/// What becomes of a connection after an answer.
pub enum After {
    /// It is closed, without having been announced.
    Close,
    /// It is closed when nothing has come for this long.
    CloseWhenIdle(Duration),
    /// It is closed when the next request comes, of which nothing is read.
    CloseUnread,
    /// It stays open.
    Keep,
}

/// An app; it stops with the test.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

type Handler = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

struct Shared {
    handler: Handler,
    stopping: AtomicBool,
    /// Connections that are open.
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    requests: AtomicUsize,
    abandoned: AtomicUsize,
}

impl Request {
    /// The value of a field, whose name is in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Reads one; `None`: the caller has no more, or broke off.
    fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let head = lines(stream)?;
        let mut request = Self { head, body: Vec::new(), trailers: String::new() };
        if request.field("transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).ok()?;
                let size = usize::from_str_radix(line.trim(), 16).ok()?;
                if size == 0 {
                    break;
                }
                let start = request.body.len();
                request.body.resize(start + size, 0);
                stream.read_exact(&mut request.body[start..]).ok()?;
                stream.read_exact(&mut [0; 2]).ok()?;
            }
            request.trailers = lines(stream)?;
        } else if let Some(length) = request.field("content-length") {
            request.body = vec![0; length.parse().ok()?];
            stream.read_exact(&mut request.body).ok()?;
        }
        Some(request)
    }
}

/// Lines to an empty one.
fn lines(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut text = String::new();
    while text != "\r\n" && !text.ends_with("\r\n\r\n") {
        if stream.read_line(&mut text).ok()? == 0 {
            return None;
        }
    }
    Some(text)
}

impl Reply {
    /// 200 with this body on a connection that stays open.
    pub fn ok(body: impl Into<String>) -> Self {
        Self::Answer(200, body.into(), After::Keep)
    }

    /// This status on a connection that stays open.
    pub fn status(status: u16) -> Self {
        Self::Answer(status, String::new(), After::Keep)
    }
}

impl Backend {
    /// Listens, and serves every request with `handler`.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Shared {
            handler: Box::new(handler),
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        };
        let this = Self { address: free(), shared: Arc::new(shared), accepting: Mutex::default() };
        this.listen();
        this
    }

    /// Listens again after a stop.
    pub fn listen(&self) {
        self.shared.stopping.store(false, Relaxed);
        let listener = TcpListener::bind(self.address).expect("a free port");
        let shared = Arc::clone(&self.shared);
        let accepting = std::thread::spawn(move || shared.accept(&listener));
        *self.accepting.lock().expect("no panic") = Some(accepting);
    }

    /// Closes the listener and all connections: whoever calls is refused.
    pub fn stop(&self) {
        let Some(accepting) = self.accepting.lock().expect("no panic").take() else { return };
        self.shared.stopping.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
        accepting.join().expect("no panic");
        for stream in self.shared.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections on which something was sent.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Relaxed)
    }

    /// Requests that were read to their end.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Relaxed)
    }

    /// Callers that went away while they got no answer.
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            if self.stopping.load(Relaxed) {
                return;
            }
            let _ = stream.set_nodelay(true);
            let Ok(kept) = stream.try_clone() else { continue };
            self.open.lock().expect("no panic").push(kept);
            let shared = Arc::clone(&self);
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                shared.serve(&mut stream);
                shared.forget(stream.get_ref());
            });
        }
    }

    fn serve(&self, stream: &mut BufReader<TcpStream>) {
        let mut first = true;
        while let Some(request) = Request::read(stream) {
            self.requests.fetch_add(1, Relaxed);
            if std::mem::take(&mut first) {
                self.connections.fetch_add(1, Relaxed);
            }
            let (status, body, after) = match (self.handler)(&request) {
                Reply::Answer(status, body, after) => (status, body, after),
                Reply::Hang => {
                    // The caller sends nothing: whatever ends the wait is its going away.
                    let _ = stream.read(&mut [0]);
                    self.abandoned.fetch_add(1, Relaxed);
                    return;
                }
                Reply::Reset => {
                    let _ = rustix::net::sockopt::set_socket_linger(stream.get_ref(), Some(Duration::ZERO));
                    return;
                }
            };
            let answer = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
            match after {
                After::Keep => {}
                After::Close => return,
                After::CloseUnread => {
                    // What is not read when a connection is closed makes it a reset.
                    let _ = stream.get_ref().peek(&mut [0]);
                    return;
                }
                After::CloseWhenIdle(time) => {
                    let _ = stream.get_ref().set_read_timeout(Some(time));
                    let came = stream.get_ref().peek(&mut [0]).is_ok();
                    let _ = stream.get_ref().set_read_timeout(None);
                    if !came {
                        return;
                    }
                }
            }
        }
    }

    /// Drops the other handle of a connection, so that it ends with this one; with it those that have ended, which have
    /// no peer any more.
    fn forget(&self, stream: &TcpStream) {
        let peer = stream.peer_addr().ok();
        self.open.lock().expect("no panic").retain(|open| open.peer_addr().ok() != peer);
    }
}
