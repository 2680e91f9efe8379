//! Serves HTTP on one downstream connection, every knob of hyper and h2 set. Used by outbound (apps) and inbound
//! (mesh peers and plaintext callers).

mod caller;

use std::{cell::Cell, convert::Infallible, future::Future, rc::Rc, time::Duration};

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use self::caller::{Caller, Callers, Seen};
use super::{FIELDS, body::Body};
use crate::drain::{Drain, Phase};

const HEAD_BYTES: usize = 64 * 1024;
const HEAD_BYTES_H2: u32 = 64 * 1024;
const STREAMS: u32 = 250;
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const SEND_BUFFER: usize = 64 * 1024;
const RESETS: usize = 100;
/// From the first byte of a connection to the end of its first request head.
const HEAD: Duration = Duration::from_secs(10);

/// In the extensions of a response: in its place the caller's stream (HTTP/2) is reset or its connection (HTTP/1.1) is
/// closed.
#[derive(Clone, Copy, Debug)]
pub struct Reset;

/// What tells hyper to reset.
#[derive(Debug, thiserror::Error)]
#[error("reset on purpose")]
struct OnPurpose;

/// What hyper does with a response: sends it, unless it stands for a reset.
fn or_reset(answer: Result<Response<Body>, Infallible>) -> Result<Response<Body>, OnPurpose> {
    match answer {
        Ok(response) if response.extensions().get::<Reset>().is_some() => Err(OnPurpose),
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}

/// Runs tasks of HTTP/2 connections on the worker's own thread.
#[derive(Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Serves HTTP/1.x until the connection ends; stops taking requests when the drain has reached `end`, or when nothing was
/// answered for `idle`, which is looked at once in that time. The first head has [`HEAD`]: until then a caller has shown nothing
/// for which it could be let wait.
pub async fn http1<IO, S, F>(io: IO, drain: Drain, end: Phase, idle: Duration, handle: S) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Callers + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let asked = Rc::new(Cell::new(false));
    let first = Rc::clone(&asked);
    let serve = move |request| {
        first.set(true);
        handle(request).map(or_reset)
    };
    let (io, caller) = Caller::new(io);
    let connection = hyper::server::conn::http1::Builder::new()
        // hyper would allocate and register a timer for each head. Ours are made once.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .max_headers(FIELDS)
        // With it on, hyper does not look whether the caller is still there: `caller` does.
        .half_close(true)
        .keep_alive(true)
        .pipeline_flush(false)
        .serve_connection(TokioIo::new(io), service_fn(serve))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let (mut late, mut gone) = (std::pin::pin!(first_head_late(&asked)), std::pin::pin!(caller.gone()));
    // What the connection has seen of the caller is looked at after it, in this order.
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => Some(result),
        () = drain.reached(end) => {
            connection.as_mut().graceful_shutdown();
            None
        }
        () = no_other_request(&caller, idle) => {
            connection.as_mut().graceful_shutdown();
            None
        }
        () = late.as_mut() => Some(Ok(())),
        () = gone.as_mut() => Some(Ok(())),
    };
    let result = match result {
        Some(result) => result,
        None => tokio::select! {
            biased;
            result = connection => result,
            () = late => Ok(()),
            () = gone => Ok(()),
        },
    };
    caller.ignore();
    result
}

/// Returns when no whole request head has come within [`HEAD`]; `asked` tells that one has.
async fn first_head_late(asked: &Cell<bool>) {
    tokio::time::sleep(HEAD).await;
    if asked.get() {
        std::future::pending::<()>().await;
    }
    tracing::debug!("no request head within {HEAD:?}: connection closed");
}

/// Returns when a whole `idle` has gone by in which nothing was sent to the caller, and none of its requests is being
/// answered.
async fn no_other_request(caller: &Seen, idle: Duration) {
    loop {
        tokio::time::sleep(idle).await;
        if caller.is_idle() {
            return;
        }
    }
}

/// Serves HTTP/2 until the connection ends; GOAWAY when the drain has reached `end` or `old` is ready.
pub async fn http2<IO, S, F>(
    io: IO,
    drain: Drain,
    end: Phase,
    old: impl Future<Output = ()>,
    handle: S,
) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let connection = hyper::server::conn::http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_local_error_reset_streams(RESETS)
        .max_pending_accept_reset_streams(20)
        .max_header_list_size(HEAD_BYTES_H2)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service_fn(move |request| handle(request).map(or_reset)));
    // Boxed: it is large, and every future that holds this one would keep room for it twice, for as long as a peer is idle.
    let mut connection = Box::pin(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = drain.reached(end) => connection.as_mut().graceful_shutdown(),
        () = old => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

#[cfg(test)]
mod tests;
