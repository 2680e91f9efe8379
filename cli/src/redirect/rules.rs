//! The rules of one sidecar as a script for nft: one table, made anew in one transaction whatever was there before. Pure.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, str::FromStr};

use weft_sidecar::virtual_ips;

/// Before the rules of others at the same place (-100), so that a published port of theirs does not come first.
const PRIORITY: i32 = -101;

/// Whose calls are redirected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum App {
    /// Everybody's on this machine or in this network namespace.
    Everybody,
    /// Those of the processes in a cgroup and below: its path below /sys/fs/cgroup, and how deep it lies in the tree.
    Cgroup { path: String, level: usize },
    /// Those of these users.
    Users(Vec<User>),
}

/// A user by number or name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User(String);

/// A network, or one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// What is left alone.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Exclude {
    /// Calls to these ports.
    pub outbound_ports: Vec<u16>,
    /// Calls to these networks.
    pub outbound_cidrs: Vec<Cidr>,
    /// Calls from outside to these ports of the app.
    pub inbound_ports: Vec<u16>,
    /// Calls of these users.
    pub users: Vec<User>,
}

/// The ports of the sidecar.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ports {
    /// Takes the app's calls.
    pub outbound: u16,
    /// Takes the app's DNS.
    pub dns: Option<u16>,
    /// By port of the app: takes calls to it.
    pub inbound: BTreeMap<u16, u16>,
    /// Takes calls from outside to all other ports.
    pub rest: Option<u16>,
}

/// All that the rules say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Name of the table.
    pub table: String,
    /// Whose calls.
    pub app: App,
    /// Where to.
    pub ports: Ports,
    /// What the sidecar's own packets carry.
    pub mark: u32,
    /// What is left alone.
    pub exclude: Exclude,
}

impl Rules {
    /// The script.
    pub fn script(&self) -> String {
        let table = &self.table;
        let mut out = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        self.output(&mut out);
        self.outbound(&mut out);
        let mut inbound = self.inbound(Some("iifname \"lo\" return"));
        if let Some(rest) = self.ports.rest {
            inbound.extend(self.exclude.inbound_ports.iter().map(|port| format!("tcp dport {port} return")));
            inbound.push(format!("fib daddr type local meta l4proto tcp redirect to :{rest}"));
        }
        chain(&mut out, "prerouting", Some("prerouting"), &inbound);
        out.push_str("}\n");
        out
    }

    /// What this machine sends: the sidecar's own goes out, the app's is redirected, and what others send to the app's
    /// ports comes to the sidecar as what comes from outside does.
    fn output(&self, out: &mut String) {
        let mut rules = vec![format!("meta mark {:#x} return", self.mark)];
        rules.extend(self.exclude.users.iter().map(|User(user)| format!("meta skuid {user} return")));
        match &self.app {
            App::Everybody => rules.push("goto app".to_owned()),
            App::Cgroup { path, level } => rules.push(format!("socket cgroupv2 level {level} \"{path}\" goto app")),
            App::Users(users) => rules.extend(users.iter().map(|User(user)| format!("meta skuid {user} goto app"))),
        }
        if self.app != App::Everybody {
            rules.extend(self.inbound(None));
        }
        chain(out, "output", Some("output"), &rules);
    }

    /// DNS comes first: it may go to a resolver on this machine. Other calls within this machine stay as they are, except
    /// those to the addresses that DNS gives.
    fn outbound(&self, out: &mut String) {
        let mut rules = Vec::new();
        let excluded = |address: &Cidr| format!("{} daddr {} return", address.family(), address.text());
        rules.extend(self.exclude.outbound_cidrs.iter().map(excluded));
        if let Some(dns) = self.ports.dns {
            rules.push(format!("meta l4proto {{ tcp, udp }} th dport 53 redirect to :{dns}"));
        }
        rules.extend(self.exclude.outbound_ports.iter().map(|port| format!("tcp dport {port} return")));
        let (range, prefix) = (virtual_ips::RANGE, virtual_ips::PREFIX);
        rules.push(format!("ip daddr 127.0.0.0/8 ip daddr != {range}/{prefix} return"));
        rules.push("ip6 daddr ::1 return".to_owned());
        rules.push(format!("meta l4proto tcp redirect to :{}", self.ports.outbound));
        chain(out, "app", None, &rules);
    }

    fn inbound(&self, first: Option<&str>) -> Vec<String> {
        let taken = self.ports.inbound.iter().filter(|(port, _)| !self.exclude.inbound_ports.contains(port));
        let taken = taken.map(|(port, front)| format!("fib daddr type local tcp dport {port} redirect to :{front}"));
        first.map(str::to_owned).into_iter().chain(taken).collect()
    }
}

fn chain(out: &mut String, name: &str, hook: Option<&str>, rules: &[String]) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "  chain {name} {{");
    if let Some(hook) = hook {
        let _ = writeln!(out, "    type nat hook {hook} priority {PRIORITY}; policy accept;");
    }
    for rule in rules {
        let _ = writeln!(out, "    {rule}");
    }
    out.push_str("  }\n");
}

impl Cidr {
    const fn family(&self) -> &'static str {
        if self.address.is_ipv4() { "ip" } else { "ip6" }
    }

    fn text(&self) -> String {
        format!("{}/{}", self.address, self.bits)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?}: expected an IP address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| format!("/{bits}: expected 0 to {most}"))?,
        };
        Ok(Self { address, bits })
    }
}

impl FromStr for User {
    type Err = String;

    /// What nft takes as it is, and nothing that it would take for another word.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<u32>().is_ok() {
            return Ok(Self(text.to_owned()));
        }
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if text.is_empty() || text.len() > 32 || !text.chars().all(letter) || text.starts_with('-') {
            return Err(format!("user {text:?}: expected a number or a name"));
        }
        Ok(Self(format!("\"{text}\"")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            table: "weft.run.web-abcde".into(),
            app: App::Cgroup { path: "system.slice/weft-1-web-abcde".into(), level: 2 },
            ports: Ports { outbound: 15001, dns: Some(15053), inbound: [(80, 18080), (81, 18081)].into(), rest: None },
            mark: 0x3001,
            exclude: Exclude {
                outbound_ports: vec![22],
                outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::1".parse().unwrap()],
                inbound_ports: vec![81],
                users: vec!["0".parse().unwrap(), "www-data".parse().unwrap()],
            },
        }
    }

    #[test]
    fn the_script_replaces_the_table_and_leaves_alone_what_it_is_told_to() {
        let expected = r#"table inet weft.run.web-abcde
delete table inet weft.run.web-abcde
table inet weft.run.web-abcde {
  chain output {
    type nat hook output priority -101; policy accept;
    meta mark 0x3001 return
    meta skuid 0 return
    meta skuid "www-data" return
    socket cgroupv2 level 2 "system.slice/weft-1-web-abcde" goto app
    fib daddr type local tcp dport 80 redirect to :18080
  }
  chain app {
    ip daddr 10.0.0.0/8 return
    ip6 daddr fd00::1/128 return
    meta l4proto { tcp, udp } th dport 53 redirect to :15053
    tcp dport 22 return
    ip daddr 127.0.0.0/8 ip daddr != 127.192.0.0/10 return
    ip6 daddr ::1 return
    meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -101; policy accept;
    iifname "lo" return
    fib daddr type local tcp dport 80 redirect to :18080
  }
}
"#;
        assert_eq!(rules().script(), expected);
    }

    #[test]
    fn everybody_is_redirected_where_nobody_is_chosen() {
        let script = Rules { app: App::Everybody, ..rules() }.script();
        assert!(script.contains("return\n    goto app\n  }"), "{script}");
        let users = App::Users(vec!["1000".parse().unwrap()]);
        assert!(Rules { app: users, ..rules() }.script().contains("meta skuid 1000 goto app"));
    }

    #[test]
    fn where_the_rest_is_taken_every_port_is_that_is_not_left_alone() {
        let script = Rules { ports: Ports { rest: Some(15099), ..rules().ports }, ..rules() }.script();
        let end = "    iifname \"lo\" return\n    fib daddr type local tcp dport 80 redirect to :18080\n    tcp dport 81 return\n    \
            fib daddr type local meta l4proto tcp redirect to :15099\n  }\n}\n";
        assert!(script.ends_with(end), "{script}");
    }

    #[test]
    fn networks_and_users_are_checked() {
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0.0/x", "a.example", "10.0.0.0/8 } drop"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
        for wrong in ["", "a b", "-x", "a\" drop", "x}"] {
            assert!(wrong.parse::<User>().is_err(), "{wrong}");
        }
    }
}
