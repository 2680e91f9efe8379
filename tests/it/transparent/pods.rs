//! A network namespace that one app has for itself, as in a pod: everything in it is redirected, and the sidecar is known by
//! its user.

use std::os::unix::fs::chown;

use super::{MARKER, lan::lacks, mesh::Mesh, outside::STRICT, script};
use crate::{net::eventually, process::Process};

/// The user of a sidecar in a pod.
const USER: u32 = 15000;

#[test]
fn ports_that_nobody_declared_are_reached_through_the_sidecar_and_its_policies_too() {
    let test = "ports_that_nobody_declared_are_reached_through_the_sidecar_and_its_policies_too";
    if lacks(test, &[("setpriv", "--version"), ("curl", "--version"), ("python3", "--version")]) {
        return;
    }
    let mesh = Mesh::start("pod", &[]);
    // Nobody else may read where the test was built, nor the token.
    let (program, token) = (mesh.dir.join("weft-for-all"), mesh.dir.join("token"));
    std::fs::copy(env!("CARGO_BIN_EXE_weft"), &program).expect("room");
    std::fs::copy(mesh.dir.join("data/dev-token"), &token).expect("a token");
    chown(&token, Some(USER), Some(USER)).expect("root");
    let (program, token) = (program.to_string_lossy(), token.to_string_lossy());

    let user = USER.to_string();
    let mut line = vec![&*program, "redirect", "install", "--outbound-port=15001", "--dns-port=15053", "--mark=15000"];
    line.extend(["--inbound-port=8000=15100", "--inbound-rest=15099", "--exclude-user", &user]);
    line.extend(["--exclude-inbound-port=15008", "--exclude-inbound-port=15021"]);
    let (code, text) = mesh.lan.run("a", &line);
    assert_eq!(code, 0, "{text}");
    let start = |name: &str, line: &[&str]| {
        let mut command = mesh.lan.command("a", line[0]);
        Process::start(command.args(&line[1..]).current_dir(&mesh.dir), &mesh.dir.join(format!("{name}.log")))
    };
    let mut line = vec!["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--", &*program, "sidecar"];
    line.extend(["--name=web", "--label=app=web", "--port=8000", "--advertise=auto", "--mesh-listen=0.0.0.0:15008"]);
    line.extend(["--admin-listen=127.0.0.1:15020", "--health-listen=0.0.0.0:15021", "--xds=10.77.0.254:15012"]);
    line.extend(["--transparent", "--redirect-ports=outbound=15001,dns=15053,rest=15099,8000=15100"]);
    line.extend(["--token", &*token]);
    let sidecar = start("sidecar", &line);
    let _declared = start("declared", &["python3", &script("speaks_first.py"), "0.0.0.0:8000"]);
    let _undeclared = start("undeclared", &["python3", &script("speaks_first.py"), "0.0.0.0:7777"]);
    let _private = start("private", &["python3", &script("speaks_first.py"), "127.0.0.1:9999"]);
    let hears = |port: u16| {
        let line = ["timeout", "20", "python3", &script("hears_first.py"), &format!("10.77.0.1:{port}"), "3"];
        match mesh.lan.run("c", &line) {
            (0, text) if text.matches(MARKER).count() == 3 => Ok(()),
            (_, text) => Err(text),
        }
    };
    let ready = || match mesh.lan.run("c", &["curl", "-sS", "http://10.77.0.1:15021/readyz"]) {
        (0, text) if text == "ready\n" => Ok(()),
        (_, text) => Err(text + &sidecar.output()),
    };
    eventually("the sidecar", ready);
    eventually("the declared port", || hears(8000));
    eventually("the undeclared port", || hears(7777));
    assert!(sidecar.output().contains("a port that nobody declared is called"), "{}", sidecar.output());
    // What was for this machine alone stays so: the app's own, and the sidecar's.
    for port in [9999, 15020, 15001] {
        assert!(hears(port).is_err(), "{port}");
    }
    let (_, endpoints) = mesh.weft(&["endpoints", "web", "-o", "json"]);
    assert!(endpoints.contains("10.77.0.1") && !endpoints.contains("7777"), "{endpoints}");

    mesh.apply(STRICT);
    for port in [8000, 7777] {
        eventually("plaintext to be refused", || match hears(port) {
            Ok(()) => Err(format!("port {port} answers")),
            Err(_) => Ok(()),
        });
    }
}
