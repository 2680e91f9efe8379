//! Who speaks first, where nobody declared the protocol. A caller has a moment to say something; then the called side is
//! dialled beside waiting, and the first byte of either decides. So a protocol whose server speaks first does not wait
//! for a caller who waits for it.

use std::time::Duration;

use tokio::{net::TcpStream, time::timeout};

use super::DETECT;
use crate::{
    error::ProxyError,
    opaque::{Primed, Side},
};

/// A caller that speaks first has said something by now in most cases, and the called side sees no needless connection.
const HEAD_START: Duration = Duration::from_millis(2);

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

/// Waits for the first byte, or the end, of either side.
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
