//! Connections of the app that were redirected here, in transparent mode. Where the app wanted to go says what becomes of
//! one: the virtual address of a service, the address of an endpoint, or an address that nothing in the mesh has.

mod head;
mod outside;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use socket2::SockRef;
use tokio::net::TcpStream;
use weft_policy::model::ObjectName;

use super::{DISCOVERY, Destination, by_port, by_protocol, find};
use crate::{
    app::worker::Worker,
    config::Upstream,
    error::{ProxyError, Reason},
    listener,
    opaque::Stream as _,
    snapshot::{Cluster, Snapshot},
    virtual_ips::is_virtual,
};

/// What has an address.
enum Place {
    /// A service, at this port of it.
    Service(Upstream),
    /// An endpoint.
    Endpoint(Arc<Cluster>),
    /// Nothing in the mesh, as far as is known.
    Outside,
}

/// A connection of the app's, wherever it was to go.
pub async fn serve(worker: Rc<Worker>, io: TcpStream) {
    if let Err(error) = listener::tune(&io) {
        tracing::debug!(%error, "could not set socket options");
    }
    let found = async {
        let original = original(&io)?;
        Ok::<_, ProxyError>((original, locate(&worker, original).await?))
    };
    match found.await {
        Ok((_, Place::Service(upstream))) => by_port(worker, Rc::new(upstream), io).await,
        Ok((original, Place::Endpoint(cluster))) => {
            by_protocol(worker, Destination::Endpoint(original), Some(cluster), io).await;
        }
        Ok((original, Place::Outside)) => Box::pin(outside::serve(worker, original, io)).await,
        Err(error) => {
            tracing::info!(%error, "redirected connection refused");
            worker.passed().refused(error.reason);
            io.abort();
        }
    }
}

/// Where a redirected connection was to go.
///
/// # Errors
/// When it was not redirected.
pub fn original(io: &TcpStream) -> Result<SocketAddr, ProxyError> {
    let local = io.local_addr().map_err(|error| ProxyError::unsent(Reason::ClientGone, error.to_string()))?;
    let original = original_of(io, local);
    // What was not redirected leads to this listener itself, or to nobody knows where: going there would come back.
    original.ok().filter(|original| *original != local).ok_or_else(|| {
        let detail = format!("{local} takes redirected connections only, and this one was not");
        ProxyError::unsent(Reason::Loop, detail)
    })
}

#[cfg(target_os = "linux")]
fn original_of(io: &TcpStream, local: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(io);
    let address = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
    address.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(not(target_os = "linux"))]
fn original_of(_: &TcpStream, _: SocketAddr) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

async fn locate(worker: &Worker, original: SocketAddr) -> Result<Place, ProxyError> {
    let address = original.ip();
    if is_virtual(address) {
        return match worker.context.virtual_ips.service(address) {
            Some(service) => at_port(worker, service, original.port()).await,
            None => {
                let detail = format!("{address} stands for no service any more: its name has to be resolved again");
                Err(ProxyError::unsent(Reason::UnknownService, detail))
            }
        };
    }
    match placed(worker, original).await {
        Some(Place::Service(Upstream { service, .. })) => at_port(worker, service, original.port()).await,
        place => Ok(place.unwrap_or(Place::Outside)),
    }
}

/// The service, if it has that port. One that nobody knows is answered where it can be, per request.
async fn at_port(worker: &Worker, service: ObjectName, port: u16) -> Result<Place, ProxyError> {
    if let Ok((_, held)) = find(worker, &service).await
        && held.port(port).is_none()
    {
        return Err(ProxyError::unsent(Reason::UnknownPort, format!("service {service} has no port {port}")));
    }
    Ok(Place::Service(Upstream { service, port: Some(port) }))
}

/// What the mesh has at an address; discovery is asked when that is not known yet. `None`: it could not be asked, or did
/// not answer. Then the connection goes where the app wants: while the control plane is away, what is outside the mesh
/// stays reachable, and what is inside and strict refuses it.
async fn placed(worker: &Worker, original: SocketAddr) -> Option<Place> {
    let mut reader = worker.snapshot();
    if let Some(place) = held(reader.load(), original) {
        return Some(place);
    }
    let demand = &worker.context.demand;
    if !demand.is_answered() {
        return None;
    }
    demand.want_address(original.ip());
    let wait = async {
        loop {
            if let Some(place) = held(reader.load(), original) {
                return Some(place);
            }
            if !reader.changed().await {
                return None;
            }
        }
    };
    tokio::time::timeout(DISCOVERY, wait).await.ok().flatten()
}

/// What a snapshot has at an address; `None` when it does not know.
fn held(snapshot: &Snapshot, original: SocketAddr) -> Option<Place> {
    let address: IpAddr = original.ip();
    if let Some(service) = snapshot.virtual_ips.get(&address) {
        return Some(Place::Service(Upstream { service: service.clone(), port: Some(original.port()) }));
    }
    if let Some(cluster) = snapshot.endpoints.get(&original) {
        return Some(Place::Endpoint(Arc::clone(cluster)));
    }
    snapshot.knows(address).then_some(Place::Outside)
}
