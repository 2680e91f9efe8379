//! Copying opaque bytes both ways: buffers that grow with the flow, half-close each way, an end for connections on
//! which nothing moves.

mod primed;
mod side;

use std::{cell::Cell, fmt, io, time::Duration};

pub use primed::Primed;
pub use side::{Side, Sink, Source, Stream};
use tokio::time::Instant;

use crate::error::Reason;

/// A connection on which nothing moves.
const IDLE: Duration = Duration::from_secs(3600);
/// The other direction after one has ended.
const HALF_CLOSED: Duration = Duration::from_secs(300);

/// Why a copy ended badly.
#[derive(Debug)]
pub enum Failure {
    /// Reading from or writing to one of the sides failed.
    Io(io::Error),
    /// Nothing moved for too long.
    Idle,
    /// It was ended from outside.
    Cut,
}

impl Failure {
    /// Its word, where nobody knows more of it.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Idle => Reason::IdleTimeout,
            Self::Io(_) | Self::Cut => Reason::ConnectionTerminated,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Idle => f.write_str("nothing moved for the idle time"),
            Self::Cut => f.write_str("it is not allowed any more"),
        }
    }
}

/// Copies until both sides have ended. `forward` and `backward` are told of the bytes of a to b and b to a. A failure of
/// one side reaches the other as a failure.
///
/// # Errors
/// When a side fails, or nothing moves for an hour, or for five minutes after one side has ended.
pub async fn copy<A: Side, B: Side>(a: A, b: B, forward: impl Fn(u64), backward: impl Fn(u64)) -> Result<(), Failure> {
    copy_until(a, b, forward, backward, std::future::pending()).await
}

/// The same until `cut` is ready: then both sides see a failure.
///
/// # Errors
/// As [`copy`], and when it is cut.
pub async fn copy_until<A: Side, B: Side>(
    a: A,
    b: B,
    forward: impl Fn(u64),
    backward: impl Fn(u64),
    cut: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let ((mut from_a, mut to_a), (mut from_b, mut to_b)) = (a.split(), b.split());
    let activity = Activity { last: Cell::new(Instant::now()), ended: Cell::new(0) };
    let both = async {
        tokio::try_join!(
            one_way(&mut from_a, &mut to_b, &forward, &activity),
            one_way(&mut from_b, &mut to_a, &backward, &activity),
        )
    };
    let result = tokio::select! {
        result = both => result.map(|_| ()).map_err(Failure::Io),
        () = activity.idle() => Err(Failure::Idle),
        () = cut => Err(Failure::Cut),
    };
    if result.is_err() {
        A::abort(from_a, to_a);
        B::abort(from_b, to_b);
    }
    result
}

/// When something last moved, and how many directions have ended.
struct Activity {
    last: Cell<Instant>,
    ended: Cell<u8>,
}

impl Activity {
    async fn idle(&self) {
        loop {
            let limit = if self.ended.get() == 0 { IDLE } else { HALF_CLOSED };
            let deadline = self.last.get() + limit;
            if Instant::now() >= deadline {
                return;
            }
            // A half-close shortens the limit: look again at least that often.
            tokio::time::sleep_until(deadline.min(Instant::now() + HALF_CLOSED)).await;
        }
    }
}

async fn one_way(
    from: &mut impl Source,
    to: &mut impl Sink,
    count: &impl Fn(u64),
    activity: &Activity,
) -> io::Result<()> {
    while let Some(bytes) = from.next().await? {
        activity.last.set(Instant::now());
        let length = bytes.len();
        to.send(bytes).await?;
        from.passed(length);
        activity.last.set(Instant::now());
        count(u64::try_from(length).unwrap_or(u64::MAX));
    }
    activity.last.set(Instant::now());
    activity.ended.set(activity.ended.get() + 1);
    to.finish().await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Two ends of a TCP connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connects"), far.expect("accepts").0)
    }

    #[tokio::test]
    async fn a_reset_of_one_side_is_a_reset_of_the_other() {
        let ((client, near), (far, mut server)) = (connection().await, connection().await);
        let work = copy(near, far, |_| {}, |_| {});
        let talk = async {
            Stream::abort(client);
            server.read(&mut [0; 16]).await
        };
        let (result, read) = tokio::join!(work, talk);
        assert!(matches!(result, Err(Failure::Io(_))));
        assert_eq!(read.expect_err("no end of the data").kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_half_close_passes_and_the_answer_still_comes() {
        let (mut client, near) = tokio::io::duplex(1024);
        let (far, mut server) = tokio::io::duplex(1024);
        let sent = Cell::new(0);
        let work = copy(near, far, |bytes| sent.set(sent.get() + bytes), |_| {});
        let talk = async {
            client.write_all(b"question").await.expect("open");
            client.shutdown().await.expect("half-close");
            let mut question = Vec::new();
            server.read_to_end(&mut question).await.expect("ends");
            assert_eq!(question, b"question");
            server.write_all(b"answer").await.expect("open");
            drop(server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("ends");
            answer
        };
        let (result, answer) = tokio::join!(work, talk);
        assert!(result.is_ok());
        assert_eq!(answer, b"answer");
        assert_eq!(sent.get(), 8);
    }

    #[tokio::test]
    async fn a_megabyte_arrives_whole() {
        let (mut client, near) = tokio::io::duplex(100_000);
        let (far, mut server) = tokio::io::duplex(100_000);
        let data: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = data.clone();
        let work = copy(near, far, |_| {}, |_| {});
        let talk = async {
            let send = async {
                client.write_all(&data).await.expect("open");
                client.shutdown().await.expect("half-close");
            };
            let receive = async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.expect("ends");
                drop(server);
                got
            };
            tokio::join!(send, receive).1
        };
        let (result, got) = tokio::join!(work, talk);
        assert!(result.is_ok());
        assert_eq!(got, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_moves_ends() {
        let (_client, near) = tokio::io::duplex(64);
        let (far, _server) = tokio::io::duplex(64);
        let start = Instant::now();
        assert!(matches!(copy(near, far, |_| {}, |_| {}).await, Err(Failure::Idle)));
        assert_eq!(start.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_connection_ends_sooner() {
        let (mut client, near) = tokio::io::duplex(64);
        let (far, _server) = tokio::io::duplex(64);
        client.shutdown().await.expect("half-close");
        let start = Instant::now();
        assert!(matches!(copy(near, far, |_| {}, |_| {}).await, Err(Failure::Idle)));
        assert!(start.elapsed() < IDLE);
    }

    #[tokio::test]
    async fn small_reads_that_wait_to_be_sent_hold_little_memory() {
        let (mut peer, near) = tokio::io::duplex(1024);
        let (mut source, _sink) = near.split();
        let mut waiting = Vec::new();
        for _ in 0..100 {
            peer.write_all(b"x").await.expect("open");
            waiting.push(source.next().await.expect("open").expect("bytes"));
        }
        drop(source);
        let held: usize =
            waiting.into_iter().map(|bytes| bytes.try_into_mut().map_or(0, |bytes| bytes.capacity())).sum();
        assert!(held <= 400, "100 bytes hold {held}");
    }
}
