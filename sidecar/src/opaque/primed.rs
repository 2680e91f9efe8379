//! A side whose first bytes are waited for before it is copied: they are kept and come first.

use std::io;

use bytes::Bytes;

use super::{Side, Source};

/// A side, open on both directions.
pub struct Primed<S: Side> {
    source: PrimedSource<S::Source>,
    sink: S::Sink,
}

/// Its source. `first` is what was read before it is copied; `Some(None)`: the end.
pub struct PrimedSource<S> {
    inner: S,
    first: Option<Option<Bytes>>,
}

impl<S: Side> Primed<S> {
    /// Nothing of it is read yet.
    pub fn new(side: S) -> Self {
        let (inner, sink) = side.split();
        Self { source: PrimedSource { inner, first: None }, sink }
    }

    /// Waits until it has said something, or ended. May be given up and called again.
    ///
    /// # Errors
    /// When reading fails.
    pub async fn first(&mut self) -> io::Result<()> {
        if self.source.first.is_none() {
            self.source.first = Some(self.source.inner.next().await?);
        }
        Ok(())
    }
}

impl<S: Side> Side for Primed<S> {
    type Source = PrimedSource<S::Source>;
    type Sink = S::Sink;

    fn split(self) -> (Self::Source, Self::Sink) {
        (self.source, self.sink)
    }

    fn abort(source: Self::Source, sink: Self::Sink) {
        S::abort(source.inner, sink);
    }
}

impl<S: Source> Source for PrimedSource<S> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => self.inner.next().await,
        }
    }

    fn passed(&mut self, length: usize) {
        self.inner.passed(length);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::opaque::copy;

    #[tokio::test]
    async fn what_was_waited_for_is_copied_first() {
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut server) = tokio::io::duplex(64);
        server.write_all(b"hello ").await.expect("open");
        let mut primed = Primed::new(far);
        primed.first().await.expect("bytes");
        server.write_all(b"again").await.expect("open");
        drop(server);
        let read = async {
            let mut got = String::new();
            client.read_to_string(&mut got).await.expect("ends");
            drop(client);
            got
        };
        let (result, got) = tokio::join!(copy(near, primed, |_| {}, |_| {}), read);
        assert_eq!(got, "hello again");
        let _ = result;
    }
}
