//! The address that a sidecar tells others: given, or found by asking the system which one it would call from.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    str::FromStr,
};

use anyhow::{Context as _, Result};

/// Documentation addresses (RFC 5737, RFC 3849): what leads there is the way to everywhere.
const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

/// Value of `--advertise`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Advertise {
    /// This one.
    Ip(IpAddr),
    /// That from which the control plane is reached; while its name is unknown, that of the default route.
    Auto,
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Ip).map_err(|_| format!("{text:?}: expected an IP address, or auto"))
    }
}

impl Advertise {
    /// The address, which is looked for at most once.
    ///
    /// # Errors
    /// When this machine has no way to anywhere.
    pub fn found(self, xds: &str) -> Result<Self> {
        match self {
            Self::Ip(_) => Ok(self),
            Self::Auto => own(xds)
                .map(Self::Ip)
                .context("--advertise auto: no way to the control plane or elsewhere; give the address"),
        }
    }
}

/// The address of this machine from which one of these is called. Nothing is sent.
fn own(xds: &str) -> Option<IpAddr> {
    let control_plane = xds.to_socket_addrs().into_iter().flatten();
    let elsewhere = ELSEWHERE.iter().filter_map(|address| address.parse::<SocketAddr>().ok());
    control_plane.chain(elsewhere).find_map(|peer| {
        let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(peer).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_given_or_that_from_which_the_control_plane_is_called() {
        assert_eq!("auto".parse(), Ok(Advertise::Auto));
        let given = Advertise::Ip("10.1.2.3".parse().expect("an address"));
        assert_eq!("10.1.2.3".parse(), Ok(given));
        assert!("web".parse::<Advertise>().is_err());
        assert_eq!(given.found("127.0.0.1:15012").expect("given"), given);
        let loopback = Advertise::Ip("127.0.0.1".parse().expect("an address"));
        assert_eq!(Advertise::Auto.found("127.0.0.1:15012").expect("found"), loopback);
    }
}
