//! What `weft check` finds of redirection on this machine: rules whose sidecar is gone, and what the kernel cannot do.

use std::net::{Ipv4Addr, TcpListener};

use super::{Check, Subject};
use crate::redirect::{self, nft, owner};

const RULES: Subject = Subject(
    "redirect-rules",
    "redirect rules",
    "weft redirect remove [--name NAME] removes them; those of a weft run that was killed go with the next weft run \
     --transparent too",
);

/// What uses everything that our rules use, without an effect: it is only read.
const PROBE: &str = "table inet weft-probe {
  chain output {
    type nat hook output priority -101; policy accept;
    meta mark 0x1 return
    meta skuid 0 return
    fib daddr type local tcp dport 80 redirect to :18080
    meta l4proto { tcp, udp } th dport 53 redirect to :15053
  }
}
";

/// One check of all rules, or one for each that leads nowhere; nothing where rules cannot be listed.
pub fn rules() -> Vec<Check> {
    // Whoever may not list them has none of his own either.
    if redirect::check("weft check").is_err() {
        return Vec::new();
    }
    match nft::tables() {
        Err(error) => vec![RULES.warning(format!("cannot be listed: {error:#}"))],
        Ok(tables) => {
            let problems = tables.iter().filter_map(|table| {
                if table.starts_with(nft::OF_RUN) {
                    let rest = || format!("table {table} is of a weft run that was killed");
                    return (!owner::is_held(table)).then(rest);
                }
                nft::list(table).map_or_else(|error| Some(error.to_string()), |text| nowhere(table, &text, is_free))
            });
            RULES.each(told(tables.len()), problems.collect())
        }
    }
}

fn told(count: usize) -> String {
    match count {
        0 => "nothing is redirected".to_owned(),
        count => format!("{} whose sidecars run", crate::listing::number(count, "table")),
    }
}

/// What is wrong with a table by whose rules connections come to a port on which nobody listens.
fn nowhere(table: &str, text: &str, is_free: impl Fn(u16) -> bool) -> Option<String> {
    let ports = text.lines().filter_map(|line| line.trim().rsplit_once("redirect to :")?.1.trim().parse().ok());
    let mut free: Vec<u16> = ports.filter(|port| is_free(*port)).collect();
    free.sort_unstable();
    free.dedup();
    let first = free.first()?;
    Some(format!("table {table} redirects to port {first}, where nobody listens: connections that it takes fail"))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Whether the kernel knows what our rules say; `None` where that cannot be asked.
pub fn features() -> Option<Result<String, String>> {
    redirect::check("weft check").ok()?;
    Some(match nft::try_out(PROBE) {
        Ok(()) => Ok("the kernel knows all that the rules need".to_owned()),
        Err(error) => Err(format!("the kernel does not know all that the rules need: {error:#}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_redirects_to_a_port_where_nobody_listens_is_told() {
        let text = "table inet weft.sidecar {\n  chain app {\n    meta l4proto tcp redirect to :15001\n    \
                    tcp dport 80 redirect to :15100\n  }\n}\n";
        assert_eq!(nowhere("weft.sidecar", text, |_| false), None);
        let found = nowhere("weft.sidecar", text, |port| port == 15100).expect("stale");
        assert!(found.starts_with("table weft.sidecar redirects to port 15100, where nobody listens"), "{found}");
    }
}
