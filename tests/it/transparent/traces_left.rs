//! What stays behind: nothing, whether an app ends, is stopped or everything is killed, and nothing when a start is refused.

use rustix::process::Signal;

use super::{lan::lacks, mesh::Mesh};
use crate::{net::eventually, process::signal};

/// Rules that somebody else has made.
const THEIRS: &str = "add table inet theirs; add chain inet theirs output { type nat hook output priority -100; }; add \
                      rule inet theirs output tcp dport 9 redirect to :10";

/// Neither gone nor waiting to be.
fn is_alive(pid: &&u32) -> bool {
    !std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty()
}

#[test]
fn the_rules_of_the_host_are_what_they_were_after_an_end_and_after_a_kill_and_a_new_start() {
    let test = "the_rules_of_the_host_are_what_they_were_after_an_end_and_after_a_kill_and_a_new_start";
    if lacks(test, &[]) {
        return;
    }
    let mesh = Mesh::start("left", &[]);
    let (code, text) = mesh.lan.run("c", &["nft", THEIRS]);
    assert_eq!(code, 0, "{text}");
    let before = mesh.lan.ruleset("c");
    let ours = || mesh.lan.ruleset("c").matches("table inet weft.run.").count();

    // A job ends by itself, and has its exit code.
    let (code, text) = super::lan::ran(&mut mesh.run_command("c", "job", &["--transparent"], &["sh", "-c", "exit 7"]));
    assert_eq!(code, 7, "{text}");
    assert_eq!(mesh.lan.ruleset("c"), before);

    // Two apps beside each other; what one has left running goes with it.
    let mut first = mesh.app("c", "first", &[], &["sh", "-c", "sleep 600 & exec sleep 600"]);
    let mut second = mesh.app("c", "second", &["--port", "80"], &["sleep", "600"]);
    eventually("both", || if ours() == 2 { Ok(()) } else { Err(first.process.output() + &second.process.output()) });
    assert_eq!(mesh.inside(&first, &["true"]).0, 0);
    let below = first.process.below();
    signal(first.process.id(), Signal::TERM);
    assert_eq!(first.process.wait().code(), Some(128 + 15), "{}", first.process.output());
    assert_eq!(below.iter().filter(is_alive).count(), 0);
    assert_eq!(ours(), 1, "the other one's rules stay");

    // Everything of the second is killed: its rules stay until the next start.
    let all = [second.process.below(), vec![second.process.id()]].concat();
    all.into_iter().for_each(|pid| signal(pid, Signal::KILL));
    let _ = second.process.wait();
    assert_eq!(ours(), 1, "{}", mesh.lan.ruleset("c"));
    let (code, text) = mesh.lan.run("c", &[env!("CARGO_BIN_EXE_weft"), "redirect", "status"]);
    assert!(code == 3 && text.contains("rest"), "{text}");
    let (code, text) = mesh.lan.run("c", &[env!("CARGO_BIN_EXE_weft"), "check", "--pre"]);
    assert!(code == 3 && text.contains("is of a weft run that was killed. weft redirect remove"), "{text}");
    let (code, text) = super::lan::ran(&mut mesh.run_command("c", "third", &["--transparent"], &["true"]));
    assert_eq!(code, 0, "{text}");
    assert_eq!(mesh.lan.ruleset("c"), before);
}

#[test]
fn the_app_ends_when_its_supervisor_is_killed_so_that_it_never_runs_without_its_rules() {
    let test = "the_app_ends_when_its_supervisor_is_killed_so_that_it_never_runs_without_its_rules";
    if lacks(test, &[]) {
        return;
    }
    let mesh = Mesh::start("orphan", &[]);
    let mut app = mesh.app("c", "app", &[], &["sleep", "600"]);
    assert_eq!(mesh.inside(&app, &["true"]).0, 0);
    let below = app.process.below();
    signal(app.process.id(), Signal::KILL);
    let _ = app.process.wait();
    eventually("the end of app and sidecar", || match below.iter().filter(is_alive).count() {
        0 => Ok(()),
        count => Err(format!("{count} are alive")),
    });
}

#[test]
fn a_start_that_cannot_redirect_says_what_is_missing_and_changes_nothing() {
    let test = "a_start_that_cannot_redirect_says_what_is_missing_and_changes_nothing";
    if lacks(test, &[("setpriv", "--version")]) {
        return;
    }
    let mesh = Mesh::start("refused", &[]);
    let before = mesh.lan.ruleset("c");
    let weft = env!("CARGO_BIN_EXE_weft");
    // Nobody else may read where the test was built: the program goes where they may.
    let program = mesh.dir.join("weft-for-all");
    std::fs::copy(weft, &program).expect("room");
    let program = program.to_string_lossy();
    let run = [&*program, "run", "--name", "x", "--transparent", "--", "/usr/bin/touch", "started"];
    let namespace = mesh.lan.name("c");
    let cases: [(&[&str], &[&str]); 3] = [
        (&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"], &["needs root", "--upstream"]),
        (&["env", "PATH=/nowhere"], &["nft", "install the package nftables"]),
        (&["ip", "netns", "exec", &namespace], &["cgroup v2 is not mounted", "nsenter --net"]),
    ];
    for (before_it, says) in cases {
        let (code, text) = mesh.lan.run("c", &[before_it, &run].concat());
        assert_eq!(code, 1, "{before_it:?}: {text}");
        assert!(says.iter().all(|words| text.contains(words)), "{before_it:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    for wrong in [&["--exclude-outbound-cidr", "10.0.0.0/33"], &["--exclude-user", "a b"]] {
        let line = [&[&*program, "run", "--name", "x", "--transparent"], &wrong[..], &["--", "true"]].concat();
        assert_eq!(mesh.lan.run("c", &line).0, 2, "{wrong:?}");
    }
    assert_eq!(mesh.lan.ruleset("c"), before);
}

#[test]
fn rules_can_be_installed_twice_shown_and_removed_twice() {
    let test = "rules_can_be_installed_twice_shown_and_removed_twice";
    if lacks(test, &[]) {
        return;
    }
    let lan = super::lan::Lan::new();
    let weft = env!("CARGO_BIN_EXE_weft");
    let before = lan.ruleset("a");
    let flags = ["--outbound-port", "15001", "--dns-port", "15053", "--inbound-port", "80=18080", "--mark", "12289"];
    let exclude = [
        ["--exclude-outbound-port", "22"],
        ["--exclude-outbound-cidr", "10.0.0.0/8"],
        ["--exclude-outbound-cidr", "fd00::/8"],
        ["--exclude-user", "nobody"],
        ["--user", "root"],
    ];
    let line = [&[weft, "redirect", "install"], &flags[..], &exclude.concat()].concat();
    let mut installed = Vec::new();
    for _ in 0..2 {
        let (code, text) = lan.run("a", &line);
        assert_eq!(code, 0, "{text}");
        installed.push(lan.ruleset("a"));
    }
    assert_eq!(installed[0], installed[1]);
    assert!(installed[0].contains("table inet weft.sidecar"), "{}", installed[0]);
    let (code, text) = lan.run("a", &[weft, "redirect", "status"]);
    assert!(code == 0 && text.contains("weft.sidecar") && text.contains("installed"), "{text}");
    let (code, text) = lan.run("a", &[weft, "check", "--pre", "--transparent"]);
    assert!(code == 3 && text.contains("table weft.sidecar redirects to port 15001, where nobody listens"), "{text}");
    assert!(text.contains("the kernel knows all that the rules need"), "{text}");
    // A set of rules that nft does not take changes nothing.
    let (code, text) = lan.run("a", &[&line[..], &["--user", "nobody-has-this-name"]].concat());
    assert!(code == 1 && text.contains("nft refused the rules"), "{text}");
    assert_eq!(lan.ruleset("a"), installed[0]);
    for _ in 0..2 {
        let (code, text) = lan.run("a", &[weft, "redirect", "remove"]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(lan.ruleset("a"), before);
    }
}
