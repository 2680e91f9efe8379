//! Hosts that are network namespaces on one bridge, made and removed by the test: the addresses 10.77.0.1 to .3 and
//! fd77::1 to ::3, and one host more, 10.77.0.254, where the control plane runs and the wire is listened to.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::needs;

/// The host of the bridge.
pub const HUB: &str = "hub";
/// The others.
pub const HOSTS: [&str; 3] = ["a", "b", "c"];

/// All hosts; they go with it.
pub struct Lan {
    prefix: String,
}

/// Whether `test` is left out for want of root, namespaces, cgroup v2 or one of these programs.
pub fn lacks(test: &str, programs: &[(&str, &str)]) -> bool {
    let always = [("ip", "-V"), ("nft", "--version"), ("nsenter", "--version")];
    needs::root(test) || always.iter().chain(programs).any(|(program, arg)| needs::program(test, program, &[arg]))
}

impl Lan {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lan = Self { prefix: format!("weft-it-{}-{number}-", std::process::id()) };
        let hub = lan.name(HUB);
        ip(&["netns", "add", &hub]);
        ip(&["-n", &hub, "link", "set", "lo", "up"]);
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        lan.addresses(HUB, 254, "br0");
        for (host, number) in HOSTS.iter().zip(1..) {
            let name = lan.name(host);
            ip(&["netns", "add", &name]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            let port = format!("port-{host}");
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
            lan.addresses(host, number, "eth0");
            // Whoever asks a resolver elsewhere needs a way there, though nobody answers.
            ip(&["-n", &name, "route", "add", "default", "via", "10.77.0.254"]);
        }
        lan
    }

    fn addresses(&self, host: &str, number: u8, interface: &str) {
        let name = self.name(host);
        ip(&["-n", &name, "addr", "add", &format!("10.77.0.{number}/24"), "dev", interface]);
        ip(&["-n", &name, "addr", "add", &format!("fd77::{number}/64"), "dev", interface, "nodad"]);
        ip(&["-n", &name, "link", "set", interface, "up"]);
    }

    /// The namespace of a host.
    pub fn name(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// A program on a host.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name(host))).arg("--").arg(program);
        command
    }

    /// Runs a program on a host to its end: its exit code and both outputs.
    pub fn run(&self, host: &str, line: &[&str]) -> (i32, String) {
        ran(self.command(host, line[0]).args(&line[1..]))
    }

    /// All rules of a host.
    pub fn ruleset(&self, host: &str) -> String {
        let (code, text) = self.run(host, &["nft", "list", "ruleset"]);
        assert_eq!(code, 0, "{text}");
        text
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in HOSTS.iter().chain([&HUB]) {
            let _ = Command::new("ip").args(["netns", "del", &self.name(host)]).status();
        }
    }
}

/// Runs a command to its end.
pub fn ran(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

fn ip(args: &[&str]) {
    let (code, text) = ran(Command::new("ip").args(args));
    assert_eq!(code, 0, "ip {args:?}: {text}");
}
