//! `weft check --pre`: what this machine has of what Weft needs.

use std::{
    net::TcpListener,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{CLOCK, Check, Subject, redirection};
use crate::run::ports;

/// Descriptors that a sidecar with some thousand connections needs.
const DESCRIPTORS: u64 = 4096;
/// The oldest kernel whose sockets have everything that the sidecar asks for.
const KERNEL: (u32, u32) = (4, 18);
/// CAP_NET_ADMIN, as a bit of CapEff.
const NET_ADMIN: u32 = 12;
/// Nothing of this project is older: the first second of 2026.
const BIRTH: Duration = Duration::from_secs(1_767_225_600);

const NETWORK: Subject = Subject("network", "network", "is the interface lo up?");
const FILES: Subject = Subject("open-files", "open files", "raise it with ulimit -n, or LimitNOFILE= of the unit");
const API: Subject = Subject("port-api", "port of the API", "if that is no control plane of yours, use --api-listen");
const DISCOVERY: Subject =
    Subject("port-discovery", "port of discovery", "if that is no control plane of yours, use --xds-listen");
const DATA: Subject = Subject("data-directory", "data directory", "give another with --data-dir");
const SYSTEM: Subject = Subject("kernel", "kernel", "use a newer one: dead peers may be noticed late");
const ADMIN: Subject = Subject("net-admin", "right to redirect", "run as root, or with the capability CAP_NET_ADMIN");
const NFT: Subject = Subject("nft", "nftables", "install the package nftables, and have nft in PATH");
const FEATURES: Subject = Subject(
    "nft-features",
    "features of nftables",
    "the kernel needs NFT_REDIR, NFT_FIB_INET and NFT_SOCKET, built in or as modules that may be loaded",
);
const CGROUP: Subject =
    Subject("cgroup", "cgroup version 2", "mount it at /sys/fs/cgroup, and let this user write there");

/// Everything; what transparent redirection needs is information unless it is asked for.
pub fn checks(transparent: bool) -> Vec<Check> {
    let mut checks = vec![loopback(), descriptors(), clock(SystemTime::now())];
    for (subject, port) in [(&API, 15014), (&DISCOVERY, 15012)] {
        checks.push(match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => subject.good(format!("127.0.0.1:{port} is free")),
            Err(error) => {
                let by = ports::holder(port).map_or_else(|| error.to_string(), |holder| format!("taken by {holder}"));
                subject.warning(format!("127.0.0.1:{port}: {by}"))
            }
        });
    }
    checks.push(data_dir());
    if let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        checks.push(kernel(release.trim()));
    }
    let wanted = |subject: &Subject, there: Result<String, String>| match there {
        Ok(text) => subject.good(text),
        Err(text) if transparent => subject.bad(text),
        Err(text) => subject.good(format!("{text}; only weft run --transparent needs it")),
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    checks.push(wanted(&ADMIN, net_admin(&status)));
    checks.push(wanted(&NFT, nft()));
    checks.push(wanted(&CGROUP, cgroup(Path::new("/sys/fs/cgroup"))));
    if let Some(features) = redirection::features() {
        checks.push(wanted(&FEATURES, features));
    }
    checks.extend(redirection::rules());
    checks
}

fn loopback() -> Check {
    match TcpListener::bind("127.0.0.1:0") {
        Ok(_) => NETWORK.good("listens on loopback"),
        Err(error) => NETWORK.bad(format!("cannot listen on 127.0.0.1: {error}")),
    }
}

fn descriptors() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < DESCRIPTORS => {
            FILES.warning(format!("at most {limit}; a busy sidecar needs {DESCRIPTORS}"))
        }
        Some(limit) => FILES.good(format!("at most {limit}")),
        None => FILES.good("without limit"),
    }
}

fn clock(now: SystemTime) -> Check {
    if now < SystemTime::UNIX_EPOCH + BIRTH {
        return CLOCK.bad("it is before 2026 by this machine's clock");
    }
    CLOCK.good("plausible; weft check compares it with the control plane's")
}

/// The default data directory, or the nearest directory above it that is there.
fn data_dir() -> Check {
    let home = std::env::var_os("HOME").unwrap_or_else(|| ".".into());
    let base = std::env::var_os("XDG_DATA_HOME").filter(|base| !base.is_empty());
    let base = base.map_or_else(|| Path::new(&home).join(".local/share"), Into::into);
    let wanted = base.join("weft");
    let there = wanted.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        Ok(()) => DATA.good(format!("{} can be written", wanted.display())),
        Err(error) => DATA.warning(format!("{}: {error}", there.display())),
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match numbers.next().zip(numbers.next()) {
        Some(version) if version < KERNEL => {
            SYSTEM.warning(format!("Linux {release} is older than {}.{}", KERNEL.0, KERNEL.1))
        }
        _ => SYSTEM.good(format!("Linux {release}")),
    }
}

fn net_admin(status: &str) -> Result<String, String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    match set {
        Some(set) if set >> NET_ADMIN & 1 == 1 => Ok("CAP_NET_ADMIN is there".to_owned()),
        Some(_) => Err("CAP_NET_ADMIN is missing".to_owned()),
        None => Err("this system has no capabilities".to_owned()),
    }
}

fn nft() -> Result<String, String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|path| path.join("nft")).find(|path| path.is_file());
    found.map(|path| path.display().to_string()).ok_or_else(|| "nft is not installed".to_owned())
}

fn cgroup(root: &Path) -> Result<String, String> {
    // Beside version 1, version 2 has a directory of its own.
    let at = [root.to_owned(), root.join("unified")];
    let at = at.iter().find(|path| path.join("cgroup.controllers").is_file() || path.join("cgroup.procs").is_file());
    let Some(at) = at else { return Err(format!("not mounted at {}", root.display())) };
    match rustix::fs::access(at, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(format!("{} can be written", at.display())),
        Err(error) => Err(format!("{}: {error}", at.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn this_machine_can_run_a_mesh_and_what_only_redirection_needs_is_information() {
        let bad = |transparent| checks(transparent).into_iter().filter(|check| check.level == Level::Bad);
        assert_eq!(bad(false).count(), 0);
        let redirection = ["net-admin", "nft", "nft-features", "cgroup"];
        assert!(bad(true).all(|check| redirection.contains(&check.code) && !check.fix.is_empty()));
    }

    #[test]
    fn each_thing_that_a_machine_lacks_is_found() {
        assert_eq!(clock(SystemTime::UNIX_EPOCH + Duration::from_secs(9)).level, Level::Bad);
        for (release, level) in [("4.17.1-x", Level::Warning), ("4.18", Level::Good), ("6.1.0-9-amd64", Level::Good)] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
        assert!(net_admin("CapEff:\t0000000000001000\n").is_ok());
        assert_eq!(net_admin("CapEff:\t0000000000000fff\n"), Err("CAP_NET_ADMIN is missing".to_owned()));
        assert!(net_admin("").is_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(cgroup(dir.path()).unwrap_err().starts_with("not mounted"));
        std::fs::create_dir(dir.path().join("unified")).unwrap();
        std::fs::write(dir.path().join("unified/cgroup.procs"), "").unwrap();
        assert!(cgroup(dir.path()).is_ok());
    }
}
