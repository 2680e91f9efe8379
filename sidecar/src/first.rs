//! Who speaks first, where nobody declared the protocol. A caller has a moment to say something; then the called side is
//! dialled beside waiting, and the first byte of either decides. So a protocol whose server speaks first does not wait
//! for a caller who waits for it. For connections of the app, and for those to it in plaintext.

use std::time::Duration;

use tokio::{net::TcpStream, time::timeout};

use crate::{
    error::ProxyError,
    opaque::{Primed, Side},
};

/// A caller that speaks first has said something by now in most cases, and the called side sees no needless connection.
const HEAD_START: Duration = Duration::from_millis(2);

/// As long as one waits for either.
const DETECT: Duration = Duration::from_secs(5);

/// Who spoke.
pub enum First<S> {
    /// The caller, and what was dialled already.
    Caller(Option<S>),
    /// The called side; or nobody did for as long as one waits.
    Called(S),
}

/// What can be waited for.
pub trait Speaks {
    /// Waits until it has said something or has ended.
    async fn speaks(&mut self);
}

impl<S: Side> Speaks for Primed<S> {
    async fn speaks(&mut self) {
        // A failure is an end; the copy meets it again.
        if let Err(error) = self.first().await {
            tracing::debug!(%error, "the called side ended before its first byte");
        }
    }
}

/// Waits for the first byte, or the end, of either side. Nothing of either is passed on.
pub async fn first<S: Speaks>(io: &TcpStream, dial: impl Future<Output = Result<S, ProxyError>>) -> First<S> {
    // Closed is ready too: who reads next meets it.
    if timeout(HEAD_START, io.peek(&mut [0])).await.is_ok() {
        return First::Caller(None);
    }
    let mut called = None;
    let speaks = async {
        match dial.await {
            Ok(dialled) => called.insert(dialled).speaks().await,
            // Whoever speaks HTTP is told why; so the caller has all the time to do so.
            Err(error) => {
                tracing::debug!(%error, "the called side could not be dialled ahead");
                std::future::pending().await
            }
        }
    };
    let mut byte = [0];
    let by_caller = tokio::select! {
        _ = io.peek(&mut byte) => true,
        () = speaks => false,
        () = tokio::time::sleep(DETECT) => false,
    };
    match called {
        Some(called) if !by_caller => First::Called(called),
        called => First::Caller(called),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;
    use crate::error::Reason;

    /// Two ends of a TCP connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connects"), far.expect("accepts").0)
    }

    #[tokio::test]
    async fn a_caller_that_speaks_at_once_is_heard_without_a_dial() {
        let (mut caller, io) = connection().await;
        caller.write_all(b"G").await.expect("open");
        io.readable().await.expect("open");
        let dial = async { panic!("not dialled") };
        assert!(matches!(first::<Primed<TcpStream>>(&io, dial).await, First::Caller(None)));
        assert_eq!(io.peek(&mut [0; 8]).await.expect("open"), 1, "nothing was taken");
    }

    #[tokio::test]
    async fn a_called_side_that_speaks_first_is_heard_and_so_is_its_end() {
        for says in [&b"220 hello"[..], b""] {
            let (_caller, io) = connection().await;
            let (mut server, called) = connection().await;
            server.write_all(says).await.expect("open");
            drop(server);
            let dial = async { Ok(Primed::new(called)) };
            assert!(matches!(first(&io, dial).await, First::Called(_)), "{says:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_that_speaks_late_keeps_what_was_dialled() {
        let (mut caller, io) = connection().await;
        let (_server, called) = connection().await;
        let dial = async {
            caller.write_all(b"late").await.expect("open");
            Ok(Primed::new(called))
        };
        assert!(matches!(first(&io, dial).await, First::Caller(Some(_))));
    }

    #[tokio::test]
    async fn who_cannot_be_dialled_is_not_waited_for() {
        let (mut caller, io) = connection().await;
        let dial = async {
            caller.write_all(b"late").await.expect("open");
            Err(ProxyError::unsent(Reason::ConnectionRefused, "nobody"))
        };
        assert!(matches!(first::<Primed<TcpStream>>(&io, dial).await, First::Caller(None)));
    }
}
