//! `weft run` as people use it: what it starts, what it passes on, how it ends, and what it says when it cannot.

mod ends;
mod health;
mod messages;
mod restarts;

use std::{
    ffi::OsStr,
    process::{Command, ExitStatus},
};

use crate::{
    mesh::TestMesh,
    net::{eventually, get, ok},
    process::Process,
};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// `weft run` of this name in a mesh, with these flags and an app behind `--`.
fn command(mesh: &TestMesh, name: &str, flags: &[&str], app: &[&str]) -> Command {
    let mut command = Command::new(WEFT);
    command.args(["run", "--name", name, "--xds", &mesh.xds().to_string()]).args(flags).arg("--").args(app);
    command.env("WEFT_LOG", "info").current_dir(&mesh.dir);
    command
}

fn start(mesh: &TestMesh, name: &str, flags: &[&str], app: &[&str]) -> Process {
    Process::start(&mut command(mesh, name, flags, app), &mesh.dir.join(format!("{name}.log")))
}

/// Waits for the end of a process.
fn end(process: &mut Process) -> ExitStatus {
    eventually("its end", || process.ended().ok_or_else(|| "it still runs".to_owned()))
}

/// Waits until a file has this line.
fn has_line(file: impl AsRef<OsStr>, line: &str) {
    let file = std::path::Path::new(file.as_ref());
    eventually(&format!("{line:?} in {}", file.display()), || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.lines().any(|one| one == line) { Ok(()) } else { Err(text) }
    });
}

/// What the control plane knows of the instances of an app: whether each takes requests.
fn known(mesh: &TestMesh, app: &str) -> Result<Vec<bool>, String> {
    let text = ok(get(mesh.api, "localhost", "/weft/v1/proxies"))?;
    let json = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let proxies: serde_json::Value = serde_json::from_str(json).map_err(|error| format!("{error}: {text}"))?;
    let items = proxies["items"].as_array().ok_or("no items")?;
    let of_app = |item: &&serde_json::Value| {
        item["name"].as_str().and_then(|name| name.rsplit_once('-')).is_some_and(|(name, _)| name == app)
    };
    let takes = |item: &serde_json::Value| item["healthy"] == true && item["draining"] != true;
    Ok(items.iter().filter(of_app).map(takes).collect())
}

/// Waits until the control plane knows the instances of an app so.
fn wait_for(mesh: &TestMesh, app: &str, expected: &[bool]) {
    eventually(&format!("{app} to be {expected:?}"), || match known(mesh, app)? {
        known if known == expected => Ok(()),
        known => Err(format!("{known:?}")),
    });
}
