//! Where the sidecar listens: finds every address before the workers start, and tells it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result};
use serde_json::{Map, json};
use socket2::Socket;

use super::{
    say,
    worker::{Listeners, UNDECLARED},
};
use crate::{
    config::SidecarArgs,
    dns::{self, DnsSockets},
    listener,
};

/// Addresses on which the workers will listen.
pub struct Bound {
    /// For the workers.
    pub listeners: Listeners,
    /// In transparent mode, where DNS of the app comes.
    pub dns: Option<DnsSockets>,
    /// They keep the addresses until the workers have sockets of their own.
    pub reserved: Vec<Socket>,
}

impl Bound {
    /// Every port on which this sidecar listens, with those of `others`.
    pub fn own_ports(&self, others: impl IntoIterator<Item = u16>) -> BTreeSet<u16> {
        let of = &self.listeners;
        let addresses = [of.outbound, of.mesh].into_iter().chain(of.upstreams.iter().map(|(_, address)| *address));
        let addresses = addresses.chain(of.inbound.iter().map(|(address, _)| *address)).chain(of.redirected.clone());
        addresses.map(|address| address.port()).chain(self.dns.as_ref().map(DnsSockets::port)).chain(others).collect()
    }
}

/// Finds them.
///
/// # Errors
/// When one cannot be had.
pub fn bind(args: &SidecarArgs) -> Result<Bound> {
    let mut reserved = Vec::new();
    let mut reserve = |what: &str, address: SocketAddr| -> Result<SocketAddr> {
        let (socket, address) = listener::reserve(address).with_context(|| format!("{what} {address}"))?;
        reserved.push(socket);
        Ok(address)
    };
    let mut upstreams = Vec::new();
    for flag in &args.upstreams {
        let upstream = flag.resolve(&args.namespace).map_err(anyhow::Error::msg)?;
        let local = SocketAddr::from(([127, 0, 0, 1], flag.local));
        upstreams.push((upstream, reserve("--upstream port", local)?));
    }
    let mut inbound = Vec::new();
    for (address, port) in &args.inbound_listen {
        inbound.push((reserve("--inbound-listen", *address)?, *port));
    }
    let listeners = Listeners {
        outbound: reserve("--outbound-listen", args.outbound_listen)?,
        mesh: reserve("--mesh-listen", args.mesh_listen)?,
        upstreams,
        inbound,
        redirected: Vec::new(),
    };
    let mut bound = Bound { listeners, dns: None, reserved };
    if args.transparent {
        transparent(args, &mut bound)?;
    }
    Ok(bound)
}

/// What is redirected comes to loopback when it is the app's, and to the address of an interface when it comes from
/// outside.
fn transparent(args: &SidecarArgs, bound: &mut Bound) -> Result<()> {
    let ports = args.redirect_ports.clone().unwrap_or_default();
    let mut both = |what: &str, loopback: bool, port: u16| -> Result<Vec<SocketAddr>> {
        let sockets =
            listener::reserve_both(loopback, port).with_context(|| format!("--transparent: {what} {port}"))?;
        let (sockets, addresses): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        bound.reserved.extend(sockets);
        Ok(addresses)
    };
    bound.listeners.redirected = both("port for the app's calls", true, ports.outbound)?;
    for port in &args.ports {
        let front = ports.inbound.get(&port.port).copied().unwrap_or(0);
        let fronts = both(&format!("front of port {}:", port.port), false, front)?;
        bound.listeners.inbound.extend(fronts.into_iter().map(|address| (address, port.port)));
    }
    if let Some(rest) = ports.rest {
        let fronts = both("front of ports that nobody declared:", false, rest)?;
        bound.listeners.inbound.extend(fronts.into_iter().map(|address| (address, UNDECLARED)));
    }
    bound.dns = Some(dns::bind(ports.dns).with_context(|| format!("--transparent: port for DNS {}", ports.dns))?);
    Ok(())
}

/// Says where it listens, in the log and to who asked for it; gives back where its metrics are.
pub fn announce(args: &SidecarArgs, bound: &Bound, admin: SocketAddr) -> SocketAddr {
    let listeners = &bound.listeners;
    tracing::info!(outbound = %listeners.outbound, mesh = %listeners.mesh, %admin, "listening");
    if !args.announce {
        return admin;
    }
    let upstreams: Map<_, _> = listeners
        .upstreams
        .iter()
        .map(|(upstream, address)| (upstream.service.name().to_owned(), address.to_string().into()))
        .collect();
    let mut event = json!({
        "event": "listening", "admin": admin.to_string(), "outbound": listeners.outbound.to_string(),
        "mesh": listeners.mesh.to_string(), "upstreams": upstreams,
    });
    if let (Some(redirected), Some(dns)) = (listeners.redirected.first(), &bound.dns) {
        // Those that were given have addresses of their own.
        let fronts = listeners
            .inbound
            .iter()
            .filter(|(address, port)| address.ip() == Ipv4Addr::UNSPECIFIED && *port != UNDECLARED);
        let inbound: Vec<_> = fronts.map(|(address, port)| (port, address.port())).collect();
        event["redirect"] = json!({ "outbound": redirected.port(), "dns": dns.port(), "inbound": inbound });
    }
    say(&event);
    admin
}
