//! Which instance `weft run` is: with a state directory the one of before, under its name and at its addresses, so that
//! the sidecar's own state fits and others find it where they knew it.

use std::{io::Write as _, net::TcpListener, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::sidecar::Listening;
use crate::args::RunArgs;

const FILE: &str = "instance.json";

/// An instance as it was.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Instance {
    /// `NAME-<5 random characters>`.
    pub name: String,
    /// Where its sidecar listened.
    pub listening: Listening,
}

impl Instance {
    /// Its addresses, if nobody else has them.
    pub fn free(&self) -> Option<&Listening> {
        let Listening { admin, outbound, mesh, redirect } = &self.listening;
        let local = redirect.iter().flat_map(|ports| {
            [ports.outbound, ports.dns].into_iter().chain(ports.inbound.iter().map(|(_, front)| *front))
        });
        let local = local.map(|port| format!("127.0.0.1:{port}"));
        let all = [admin, outbound, mesh].into_iter().cloned().chain(local);
        match all.into_iter().find(|address| TcpListener::bind(address.as_str()).is_err()) {
            None => Some(&self.listening),
            Some(address) => {
                eprintln!("weft run: {address}, where this instance was before, is taken; it gets other addresses");
                None
            }
        }
    }
}

/// The instance that `dir` is of; `None`: there is none yet, or it is of another app.
pub fn load(dir: &Path, args: &RunArgs) -> Option<Instance> {
    let text = std::fs::read(dir.join(FILE)).ok()?;
    let instance: Instance = serde_json::from_slice(&text).ok()?;
    let suffix = instance.name.strip_prefix(&args.name)?.strip_prefix('-')?;
    (suffix.len() == 5 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(instance)
}

/// Keeps it. The sidecar has made the directory, for this user alone.
pub fn save(dir: &Path, instance: &Instance) {
    if let Err(error) = write(dir, instance) {
        eprintln!("weft run: {error:#}; after a restart this will be another instance");
    }
}

fn write(dir: &Path, instance: &Instance) -> anyhow::Result<()> {
    let (file, new) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
    let text = serde_json::to_vec(instance)?;
    let write = || -> std::io::Result<()> {
        // A rest of an earlier try.
        let _ = std::fs::remove_file(&new);
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(&text)?;
        out.sync_all()?;
        std::fs::rename(&new, &file)
    };
    write().with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: &str) -> RunArgs {
        use clap::Parser as _;
        match crate::args::Cli::try_parse_from(["weft", "run", "--name", name, "--", "app"]).unwrap().command {
            crate::args::Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_instance_is_the_same_one_after_a_restart_and_never_that_of_another_app() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), &args("web")), None);
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |port: u16| format!("127.0.0.1:{port}");
        let busy = held.local_addr().unwrap().port();
        let listening = Listening { admin: address(0), outbound: address(0), mesh: address(busy), redirect: None };
        let instance = Instance { name: "web-bcdfg".into(), listening };
        save(dir.path(), &instance);
        save(dir.path(), &instance);
        assert_eq!(load(dir.path(), &args("web")), Some(instance.clone()));
        assert_eq!(load(dir.path(), &args("we")), None);
        assert_eq!(load(dir.path(), &args("web-b")), None);
        assert_eq!(instance.free(), None, "its mesh address is taken");
        drop(held);
        assert_eq!(instance.free(), Some(&instance.listening));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(load(dir.path(), &args("web")), None);
    }
}
