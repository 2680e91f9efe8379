//! Opaque bytes from the mesh: a CONNECT stream becomes a TCP connection to the app.

use std::rc::Rc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::{app_address, app_port, parse_authority, unknown_port};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{body::Body, reply},
    opaque,
    upstream::connect_tcp,
};

/// Answers a CONNECT; on success the bytes flow in a task of their own.
pub async fn run(worker: &Rc<Worker>, request: Request<Incoming>) -> Response<Body> {
    match open(worker, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::info!(%error, "tunnel refused");
            reply::error(&error, false, None)
        }
    }
}

async fn open(worker: &Rc<Worker>, mut request: Request<Incoming>) -> Result<Response<Body>, ProxyError> {
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let target = parse_authority(authority).ok_or_else(|| {
        let detail = format!("CONNECT to {authority:?}: expected <service>.<namespace>:<port>");
        ProxyError::unsent(Reason::BadRequest, detail)
    })?;
    let mut snapshot = worker.snapshot();
    let Some(workload) = snapshot.load().workload.as_ref() else {
        return Err(ProxyError::unsent(Reason::NotReady, "the inbound configuration has not arrived yet"));
    };
    let port = app_port(workload, &target).ok_or_else(|| unknown_port(authority))?.port;
    let metrics = worker.inbound_tcp(port, true);
    let app = connect_tcp(app_address(port)).await.inspect_err(|error| {
        metrics.refused(error.reason);
    })?;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::task::spawn_local(async move {
        let open = metrics.opened();
        let result = match upgraded.await {
            Ok(near) => {
                let near = TokioIo::new(near);
                opaque::copy(near, app, |bytes| metrics.received(bytes), |bytes| metrics.sent(bytes)).await.is_ok()
            }
            Err(error) => {
                tracing::debug!(%error, "tunnel was not opened");
                false
            }
        };
        open.closed((!result).then_some(Reason::ConnectionTerminated));
    });
    Ok(Response::new(Body::empty()))
}
