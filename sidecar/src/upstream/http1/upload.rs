//! What is left of a request whose answer has begun. It is sent by a task of its own: a caller that reads no more of the answer
//! before all of its request is taken would wait for itself otherwise. Rare: most answers come after the request.

use std::future::poll_fn;

use tokio::{net::tcp::OwnedWriteHalf, task::JoinHandle};

use super::Sending;

/// The task, which ends with this.
pub struct Upload(JoinHandle<()>);

impl Upload {
    /// Goes on with a request.
    pub fn start(mut sending: Sending, mut to: OwnedWriteHalf) -> Self {
        Self(tokio::task::spawn_local(async move {
            if let Err(error) = poll_fn(|context| sending.poll(&mut to, context)).await {
                tracing::debug!(%error, "a request was not sent to its end: its answer came before");
            }
            // Dropping it would say that the request has ended; the connection is closed with its answer.
            std::future::pending::<()>().await;
        }))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}
