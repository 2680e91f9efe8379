//! Who is alive, by names of abstract sockets: they belong to the network namespace, as the rules do, and go with their
//! process, however it ends. A process that claims a name holds it; a table whose name nobody holds is a rest.

use std::{io, os::unix::net::UnixDatagram, thread::sleep, time::Duration};

use anyhow::{Context as _, bail};

/// Marks that sidecars get: kube-proxy (0x4000, 0x8000), Cilium (0x0f00), Tailscale (0xff0000) and Calico (0xffff0000)
/// use other bits.
const MARKS: std::ops::RangeInclusive<u32> = 0x3001..=0x30ff;

/// A name that is held.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, not used")] UnixDatagram);

/// Takes a name.
pub fn claim(name: &str) -> anyhow::Result<Claim> {
    // Somebody may be looking just now whether it is held.
    for _ in 0..20 {
        match bind(name) {
            Ok(claim) => return Ok(claim),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => sleep(Duration::from_millis(10)),
            Err(error) => return Err(error).with_context(|| format!("claim {name}")),
        }
    }
    bail!("{name} runs already, in this network namespace")
}

/// Whether somebody holds a name.
pub fn is_held(name: &str) -> bool {
    // What cannot be told is left alone.
    bind(name).is_err()
}

/// A mark that no other sidecar here has.
pub fn mark() -> anyhow::Result<(u32, Claim)> {
    for mark in MARKS {
        match bind(&format!("weft.mark.{mark:x}")) {
            Ok(claim) => return Ok((mark, claim)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("claim a mark"),
        }
    }
    bail!("no mark is left: 255 transparent sidecars run in this network namespace")
}

#[cfg(not(target_os = "linux"))]
fn bind(_: &str) -> io::Result<Claim> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn bind(name: &str) -> io::Result<Claim> {
    use std::os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr};
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?).map(Claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_by_one_and_until_it_goes() {
        let name = format!("weft.run.test-{}", std::process::id());
        assert!(!is_held(&name));
        let held = claim(&name).unwrap();
        assert!(is_held(&name));
        assert!(claim(&name).unwrap_err().to_string().contains("runs already"));
        drop(held);
        assert!(!is_held(&name));
        claim(&name).unwrap();
    }

    #[test]
    fn two_sidecars_have_two_marks() {
        let ((first, _held), (second, _too)) = (mark().unwrap(), mark().unwrap());
        assert_ne!(first, second);
        assert!(first & 0xcf00 == 0 && second & 0xcf00 == 0);
    }
}
