//! Ports that are taken, and by whom, as far as /proc tells.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::bail;

/// An address on which something is to listen, and the flag that says so. Port 0 is any.
pub fn free(flag: &str, address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let by = holder(address.port()).map_or_else(String::new, |holder| format!(" by {holder}"));
            bail!("{flag}: {address} is taken{by}; stop that, or give another port")
        }
        Err(error) => bail!("{flag}: {address}: {error}"),
        Ok(_) => Ok(()),
    }
}

/// Who listens on a TCP port of this machine: program and process id, or the user where we may not look.
pub fn holder(port: u16) -> Option<String> {
    let (inode, user) = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| listener(line, port))
    })?;
    let socket = format!("socket:[{inode}]");
    let holds = |process: &Path| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        targets.any(|target| target.as_os_str() == socket.as_str())
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut processes = processes.filter_map(|entry| Some((numbered(&entry.path())?, entry.path())));
    let found = processes.find(|(_, path)| holds(path));
    Some(found.map_or_else(
        || format!("a process of user {user}"),
        |(pid, path)| {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            format!("{} (process {pid})", name.trim())
        },
    ))
}

/// Inode and user of a line of /proc/net/tcp, if it is a listener on this port.
fn listener(line: &str, port: u16) -> Option<(u64, u32)> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let matches = u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
    let inode: u64 = fields.get(9)?.parse().ok()?;
    matches.then_some((inode, fields.get(7)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        assert_eq!(listener(line, 8080), Some((4711, 1000)));
        assert_eq!(listener(line, 8081), None);
        assert_eq!(listener(&line.replace(" 0A ", " 01 "), 8080), None);
        assert_eq!(listener("", 1), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_taken_port_is_told_with_its_flag_and_its_holder() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let error = free("--admin-listen", address).unwrap_err().to_string();
        let ours = format!("(process {})", std::process::id());
        assert!(error.starts_with(&format!("--admin-listen: {address} is taken by ")), "{error}");
        assert!(error.contains(&ours), "{error}");
        drop(held);
        assert!(free("--admin-listen", address).is_ok());
    }
}
