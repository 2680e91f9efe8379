//! A copy of a body for mirrors, made while the body is sent to where it belongs.

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::BodyError;

/// Collects a body up to a bound. Dropped before the end, those who wait see their channel close.
pub struct Tee {
    collected: BytesMut,
    bound: usize,
    waiting: SmallVec<[oneshot::Sender<Copied>; 1]>,
}

/// How collecting ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Copied {
    /// The whole body, without its trailers.
    Whole(Bytes),
    /// It was longer than the bound.
    TooLong,
}

impl Tee {
    /// Collects at most `bound` bytes for those who `wait`.
    #[must_use]
    pub fn new(bound: usize, waiting: impl IntoIterator<Item = oneshot::Sender<Copied>>) -> Self {
        Self { collected: BytesMut::new(), bound, waiting: waiting.into_iter().collect() }
    }

    /// Sees what the body has given; `last` says that nothing comes after it. False: there is nothing more to collect.
    pub(super) fn sees(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>, last: bool) -> bool {
        match frame {
            Some(Err(_)) => return false,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if self.collected.len() + data.len() > self.bound {
                        self.tell(&Copied::TooLong);
                        return false;
                    }
                    self.collected.extend_from_slice(data);
                }
                if !last && frame.is_data() {
                    // Whoever has given up waiting needs no copy.
                    self.waiting.retain(|waiting| !waiting.is_closed());
                    return !self.waiting.is_empty();
                }
            }
            None => {}
        }
        let whole = std::mem::take(&mut self.collected).freeze();
        self.tell(&Copied::Whole(whole));
        false
    }

    fn tell(&mut self, copied: &Copied) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(copied.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tee(bound: usize) -> (Tee, oneshot::Receiver<Copied>) {
        let (sender, receiver) = oneshot::channel();
        (Tee::new(bound, [sender]), receiver)
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn trailers() -> Result<Frame<Bytes>, BodyError> {
        Ok(Frame::trailers(http::HeaderMap::new()))
    }

    #[test]
    fn a_body_is_copied_when_it_has_ended_in_any_of_the_three_ways() {
        for end in 0..3 {
            let (mut tee, mut receiver) = tee(5);
            assert!(tee.sees(Some(&data("ab")), false));
            let more = match end {
                0 => tee.sees(Some(&data("cde")), true),
                1 => tee.sees(Some(&data("cde")), false) && tee.sees(None, true),
                _ => tee.sees(Some(&data("cde")), false) && tee.sees(Some(&trailers()), false),
            };
            assert!(!more);
            assert_eq!(receiver.try_recv(), Ok(Copied::Whole(Bytes::from_static(b"abcde"))), "{end}");
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_not_copied() {
        let (mut tee, mut receiver) = tee(4);
        assert!(tee.sees(Some(&data("ab")), false));
        assert!(!tee.sees(Some(&data("cde")), false));
        assert_eq!(receiver.try_recv(), Ok(Copied::TooLong));
    }

    #[test]
    fn a_body_that_fails_is_not_copied() {
        let (mut tee, mut receiver) = tee(4);
        assert!(!tee.sees(Some(&Err(BodyError::Cut)), false));
        drop(tee);
        assert_eq!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn nothing_is_collected_when_nobody_waits() {
        let (mut tee, receiver) = tee(4);
        drop(receiver);
        assert!(!tee.sees(Some(&data("ab")), false));
    }
}
