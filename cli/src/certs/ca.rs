//! `weft certs ca` and `weft certs audit`: the certificate authority, and what it did.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::{
    listing::{self, Output, items, text},
    server::{Server, ServerArgs, with_query},
    style::{self, BAD, GOOD, STRONG, WARNING},
    table::Table,
};

/// The authority's path at the server.
pub const CA: &str = "/weft/v1/ca";

/// Flags of `weft certs ca`.
#[derive(Args, Clone, Debug)]
pub struct CaArgs {
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `weft certs audit`.
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    /// How many events, newest first, at most 1000
    #[arg(long, value_name = "N", default_value = "50")]
    pub limit: u32,
    /// Only those before this number
    #[arg(long, value_name = "NUMBER")]
    pub before: Option<u64>,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the authority: exit code 3 when it needs something.
pub async fn run(args: CaArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let state = server.get(CA).await?;
    print(args.output, &state);
    Ok(if state["warning"].is_null() { server.exit_code() } else { ExitCode::from(3) })
}

/// Prints the authority in a form.
pub fn print(output: Output, state: &Value) {
    let people = matches!(output, Output::Table | Output::Wide);
    if people {
        for (name, value) in heading(state) {
            anstream::println!("{STRONG}{:<14}{STRONG:#}{value}", format!("{name}:"));
        }
        anstream::println!();
    }
    let roots = state["roots"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<String> = roots.iter().map(|root| text(root, "serial")).collect();
    listing::print(output, state, &names, &certificates(state), "no certificate");
    let revocations = state["revocations"].as_array().map(Vec::as_slice).unwrap_or_default();
    if people && !revocations.is_empty() {
        anstream::println!();
        revoked(revocations).print();
    }
    if let Some(warning) = state["warning"].as_str() {
        style::warn(warning);
    }
}

fn heading(state: &Value) -> Vec<(&'static str, String)> {
    let phase = text(state, "phase");
    let phase = style::paint(if phase == "stable" { GOOD } else { WARNING }, &phase);
    let life = listing::duration(state["lifetimeSeconds"].as_i64().unwrap_or_default());
    let mut lines = vec![
        ("Trust domain", text(state, "trustDomain")),
        ("Issuer", if state["source"] == "files" { "from files" } else { "embedded" }.to_owned()),
        ("Rotation", phase),
        ("Lifetime", life),
    ];
    let steps: Vec<&str> = state["next"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !steps.is_empty() {
        lines.push(("Next steps", steps.join(", ")));
    }
    for (title, field) in [("Not acked by", "unacknowledged"), ("To renew", "otherRoot")] {
        let names = names(&state["waiting"][field]);
        if state["phase"] != "stable" && !names.is_empty() {
            lines.push((title, some(&names)));
        }
    }
    lines
}

/// The names of a list.
pub fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// A few of many names.
pub fn some(names: &[String]) -> String {
    match names {
        [first @ .., _] if first.len() > 5 => format!("{} and {} more", names[..5].join(", "), names.len() - 5),
        all => all.join(", "),
    }
}

fn certificates(state: &Value) -> Table {
    let mut table = Table::new(&["CERTIFICATE", "ROLE", "ENDS IN", "ENDS", "SERIAL"]);
    let mut row = |kind: &str, role: &str, of: &Value| {
        let left = of["expiresInSeconds"].as_i64().unwrap_or_default();
        let left = match left {
            ..=0 => style::paint(BAD, "expired"),
            left => listing::duration(left),
        };
        table.row([kind.to_owned(), role.to_owned(), left, text(of, "notAfter"), text(of, "serial")]);
    };
    for root in state["roots"].as_array().into_iter().flatten() {
        row("root", &text(root, "role"), root);
    }
    row("issuer", "issues", &state["issuer"]);
    if !state["otherIssuer"].is_null() {
        row("issuer", if state["phase"] == "prepared" { "next" } else { "last" }, &state["otherIssuer"]);
    }
    table
}

/// The revocations in force.
pub fn revoked(entries: &[Value]) -> Table {
    let mut table = Table::new(&["REVOCATION", "WHAT", "BY", "REASON"]);
    for entry in entries {
        let what = match (text(entry, "serial"), text(entry, "identity")) {
            (serial, identity) if serial.is_empty() => identity,
            (serial, identity) if identity.is_empty() => format!("serial {serial}"),
            (serial, identity) => format!("serial {serial} of {identity}"),
        };
        table.row([text(entry, "id"), what, text(entry, "by"), text(entry, "reason")]);
    }
    table
}

/// Prints the record.
pub async fn audit(args: AuditArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let (limit, before) = (args.limit.to_string(), args.before.map(|before| before.to_string()));
    let path = with_query("/weft/v1/ca/audit", &[("limit", Some(&limit)), ("before", before.as_deref())]);
    let value = server.get(&path).await?;
    let mut table = Table::new(&["NUMBER", "TIME", "EVENT", "REASON", "BY", "IDENTITY", "DETAIL"]);
    for entry in items(&value) {
        let serial = text(entry, "serial");
        let detail = [text(entry, "detail"), if serial.is_empty() { serial } else { format!("serial {serial}") }];
        let detail = detail.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        let rest = ["time", "event", "reason", "by", "identity"].map(|field| text(entry, field));
        table.row([text(entry, "number")].into_iter().chain(rest).chain([detail]));
    }
    let numbers: Vec<String> = items(&value).iter().map(|entry| text(entry, "number")).collect();
    listing::print(args.output, &value, &numbers, &table, "nothing was recorded");
    Ok(server.exit_code())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rotation_shows_both_roots_and_who_is_waited_for() {
        let certificate = |role: &str, left: i64| json!({"serial": "ab", "role": role, "expiresInSeconds": left});
        let state = json!({"trustDomain": "td", "source": "embedded", "phase": "prepared", "lifetimeSeconds": 86_400,
            "next": ["root-switch", "root-rollback"], "roots": [certificate("issues", 86_400), certificate("next", 0)],
            "issuer": certificate("", 7200), "otherIssuer": certificate("", 3600),
            "waiting": {"unacknowledged": ["shop/a", "shop/b"], "otherRoot": []}});
        let text = anstream::adapter::strip_str(&certificates(&state).render(None)).to_string();
        for line in
            ["root         issues  1d", "root         next    expired", "issuer       issues  2h", "issuer       next"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        let lines = heading(&state);
        assert!(lines.contains(&("Not acked by", "shop/a, shop/b".to_owned())), "{lines:?}");
        assert!(lines.contains(&("Next steps", "root-switch, root-rollback".to_owned())), "{lines:?}");
        assert!(!lines.iter().any(|(name, _)| *name == "To renew"), "{lines:?}");
    }

    #[test]
    fn many_names_are_cut_short() {
        let many: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(some(&many), "0, 1, 2, 3, 4 and 3 more");
        assert_eq!(some(&many[..6]), "0, 1, 2, 3, 4, 5");
        assert_eq!(some(&[]), "");
    }

    #[test]
    fn a_revocation_says_what_it_means() {
        let entries = json!([{"id": "a1", "serial": "0b", "identity": "spiffe://td/x", "by": "ann", "reason": "lost"},
            {"id": "a2", "identity": "spiffe://td/y", "by": "ann"}, {"id": "a3", "serial": "0c", "by": "ann"}]);
        let text = revoked(entries.as_array().unwrap()).render(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        for part in ["serial 0b of spiffe://td/x  ann  lost", "a2          spiffe://td/y", "serial 0c "] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
