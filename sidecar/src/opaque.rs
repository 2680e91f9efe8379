//! Copying opaque bytes both ways: buffers that grow with the flow, half-close each way, an end for connections on
//! which nothing moves.

use std::{cell::Cell, fmt, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

/// Sizes that a direction's buffer takes, one after the other, when a read fills it.
const SIZES: [usize; 3] = [4 * 1024, 16 * 1024, 64 * 1024];
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
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Idle => f.write_str("nothing moved for the idle time"),
        }
    }
}

/// Copies until both sides have ended. `forward` and `backward` are told of the bytes of a to b and b to a.
///
/// # Errors
/// When a side fails, or nothing moves for an hour, or for five minutes after one side has ended.
pub async fn copy<A, B>(a: A, b: B, forward: impl Fn(u64), backward: impl Fn(u64)) -> Result<(), Failure>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let activity = Activity { last: Cell::new(Instant::now()), ended: Cell::new(0) };
    let both = async {
        tokio::try_join!(
            one_way(&mut a_read, &mut b_write, &forward, &activity),
            one_way(&mut b_read, &mut a_write, &backward, &activity),
        )
    };
    tokio::select! {
        result = both => result.map(|_| ()).map_err(Failure::Io),
        () = activity.idle() => Err(Failure::Idle),
    }
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
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &impl Fn(u64),
    activity: &Activity,
) -> io::Result<()> {
    let mut step = 0;
    let mut buffer = vec![0; SIZES[step]];
    loop {
        let length = from.read(&mut buffer).await?;
        activity.last.set(Instant::now());
        if length == 0 {
            to.shutdown().await?;
            activity.ended.set(activity.ended.get() + 1);
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        activity.last.set(Instant::now());
        count(u64::try_from(length).unwrap_or(u64::MAX));
        if length == buffer.len() && step + 1 < SIZES.len() {
            step += 1;
            buffer.resize(SIZES[step], 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
