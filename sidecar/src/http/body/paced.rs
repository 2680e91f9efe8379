//! A body that is given out slowly, as a fault on purpose.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

use super::{BodyError, Kind};

/// Pieces in a second, where there are as many bytes: small enough to look like a slow line.
const PIECES: u64 = 20;

/// A body and its pace.
pub struct Paced {
    body: Kind,
    bytes_per_second: u64,
    /// Taken from the body and not given yet.
    held: Bytes,
    /// Until the next piece.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) const fn new(body: Kind, bytes_per_second: u64) -> Self {
        let bytes_per_second = if bytes_per_second == 0 { 1 } else { bytes_per_second };
        Self { body, bytes_per_second, held: Bytes::new(), timer: None }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while self.held.is_empty() {
            match ready!(self.body.poll(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let most = usize::try_from((self.bytes_per_second / PIECES).max(1)).unwrap_or(usize::MAX);
        let piece = self.held.len().min(most);
        let timer = self.timer.get_or_insert_with(|| {
            let nanos = 1_000_000_000 * u128::try_from(piece).unwrap_or(0) / u128::from(self.bytes_per_second);
            Box::pin(tokio::time::sleep(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))))
        });
        ready!(timer.as_mut().poll(context));
        self.timer = None;
        if let Kind::Incoming(from_peer) = &mut self.body {
            from_peer.moved();
        }
        Poll::Ready(Some(Ok(Frame::data(self.held.split_to(piece)))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let (mut hint, held) = (self.body.size_hint(), u64::try_from(self.held.len()).unwrap_or(0));
        let (lower, upper) = (hint.lower().saturating_add(held), hint.upper());
        if let Some(upper) = upper {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(lower);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;

    use super::super::Body;

    #[tokio::test(start_paused = true)]
    async fn a_paced_body_takes_as_long_as_its_bytes() {
        for (length, rate, milliseconds) in [(1000, 500, 2000), (10, 5, 2000), (1, 1, 1000), (0, 1, 0)] {
            let mut body = Body::full(vec![b'x'; length]);
            body.pace(rate);
            let begun = Instant::now();
            let collected = body.collect().await.expect("a body").to_bytes();
            // Timers have a resolution of a millisecond for each piece.
            let took = begun.elapsed().as_millis();
            assert_eq!(collected.len(), length);
            assert!((milliseconds..milliseconds + 50).contains(&took), "{length} bytes took {took} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_body_comes_in_pieces_and_knows_its_length() {
        use http_body::Body as _;
        let mut body = Body::full(vec![b'x'; 30]);
        body.pace(200);
        assert_eq!(body.size_hint().exact(), Some(30));
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.expect("a frame").into_data().expect("data");
            sizes.push((data.len(), body.size_hint().exact(), body.is_end_stream()));
        }
        assert_eq!(sizes, [(10, Some(20), false), (10, Some(10), false), (10, Some(0), true)]);
    }
}
