//! One instance of a service: its app and how it is declared.

use std::{ffi::OsString, net::SocketAddr};

use super::WEFT;
use crate::net::free;

/// One instance of a service with a sidecar beside it.
#[derive(Clone)]
pub struct Workload {
    /// Its own name, unique in the mesh.
    pub(super) name: String,
    pub(super) service: String,
    pub(super) port: SocketAddr,
    pub(super) declared: String,
    /// `None`: the app is somebody else's, the sidecar stands alone.
    pub(super) command: Option<Vec<OsString>>,
    pub(super) front: Option<SocketAddr>,
    /// Services that the app calls, and where.
    pub(super) calls: Vec<(String, SocketAddr)>,
}

impl Workload {
    /// An app that runs already, at `address`; `protocol` is one of `weft run --port`, or empty for undeclared.
    pub fn beside(service: &str, address: SocketAddr, protocol: &str) -> Self {
        let number = address.port();
        let declared = if protocol.is_empty() { number.to_string() } else { format!("main:{number}/{protocol}") };
        let (name, calls) = (service.into(), Vec::new());
        Self { name, service: service.into(), port: address, declared, command: None, front: None, calls }
    }

    /// Another name than the service's, so that the service may have several instances; only beside an app that runs
    /// already.
    pub fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// A plaintext front of the app at this address; only beside an app that runs already.
    pub fn front(self, address: SocketAddr) -> Self {
        Self { front: Some(address), ..self }
    }

    /// The app calls a service at this address; only beside an app that runs already.
    pub fn calling(mut self, service: &str, address: SocketAddr) -> Self {
        self.calls.push((service.into(), address));
        self
    }

    /// An app that `weft run` starts; it is to listen at `address`.
    pub fn run(
        service: &str,
        address: SocketAddr,
        protocol: &str,
        command: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        let command = Some(command.into_iter().map(Into::into).collect());
        Self { command, ..Self::beside(service, address, protocol) }
    }

    /// A service of the demo, which `weft run` starts.
    pub fn demo(service: &str, protocol: &str) -> Self {
        let address = free();
        Self::run(service, address, protocol, [WEFT, "demo-service", service, "--listen", &address.to_string()])
    }
}
