//! The API as the official Python client of Kubernetes sees it. The program checks for itself and prints what it has
//! checked.

use std::process::Command;

use crate::{
    control_plane::{ControlPlane, command},
    history,
    left_out::left_out,
};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/process/programs/kubernetes_client.py");

#[test]
fn the_official_python_client_reads_writes_patches_and_watches() {
    let test = "the_official_python_client_reads_writes_patches_and_watches";
    match Command::new("python3").args(["-c", "import kubernetes"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(_) => return left_out(test, "python3 has no module kubernetes"),
        Err(error) => return left_out(test, &format!("python3 is not installed: {error}")),
    }
    let directory = tempfile::tempdir().expect("a directory");
    let control_plane = ControlPlane::start(&mut command(&directory.path().join("data"), directory.path()));
    let url = format!("http://{}", control_plane.api);
    let output = Command::new("python3").args([PROGRAM, &url]).env_remove("http_proxy").output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{out}");
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), 16, "{out}");
    history::verified(&mut control_plane.client());
}
