//! A request to a peer that takes a byte at a time, so that a write stops at every place.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use tokio::io::AsyncWrite;
use weft_policy::fields::Fields;

use super::{
    super::{body::Decoder, sending::Sending},
    peers::{local, post},
};

/// What was taken, and whether the next write has to wait.
#[derive(Default)]
struct Drip(Vec<u8>, bool);

impl AsyncWrite for Drip {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.1 = !self.1;
        if self.1 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.0.extend(bytes.first());
        Poll::Ready(Ok(1))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_chunked_request_is_the_same_wherever_a_write_stops() {
    local(async {
        let (mut request, sender) = post(("transfer-encoding", "chunked")).await;
        let pieces = [(b'a', 5000), (b'b', 10), (b'c', 6000), (b'd', 4097), (b'e', 1)];
        let mut whole = Vec::new();
        for (byte, length) in pieces {
            let piece = vec![byte; length];
            whole.extend_from_slice(&piece);
            sender.send(Frame::data(piece.into())).await.expect("open");
        }
        drop(sender);
        let request = request.take().expect("a request");
        let (mut sending, mut taken) = (Sending::default(), Drip::default());
        sending.head(&request, Fields::of(request.headers()));
        let (parts, body) = request.into_parts();
        sending.body(body, &parts.headers);
        std::future::poll_fn(|context| sending.poll(&mut taken, context)).await.expect("all of it");

        let head = taken.0.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        let (mut rest, mut decoder, mut got) = (Bytes::from(taken.0.split_off(head)), Decoder::chunked(), Vec::new());
        while decoder != Decoder::Done {
            if let Some(frame) = decoder.decode(&mut rest).expect("chunks") {
                got.extend_from_slice(frame.data_ref().expect("data"));
            } else {
                assert_eq!(decoder, Decoder::Done, "the chunks do not end");
            }
        }
        assert!(got == whole && rest.is_empty(), "{} of {} bytes came", got.len(), whole.len());
    })
    .await;
}
