//! `weft history` and `weft rollback`: who changed what and why, whether the log is whole, and back to a past state.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use crate::{
    args, diff,
    kinds::Kinds,
    listing::{self, Output, text},
    server::{Call, CallError, Server, ServerArgs, with_query},
    style,
    table::Table,
    targets::{self, ScopeArgs, Target},
    wait,
};

/// Flags of `weft history`.
#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// KIND, KIND NAME or KIND/NAME; or the word verify, which proves that the log is whole
    #[arg(value_name = "KIND [NAME]|verify")]
    pub what: Vec<String>,
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// At most so many events, the newest first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Only events before this revision
    #[arg(long, value_name = "N")]
    pub before: Option<u64>,
    /// Also what the control plane itself writes into statuses
    #[arg(long)]
    pub all: bool,
    /// Show what each event changed
    #[arg(long)]
    pub diff: bool,
    /// With verify: prove the log in this data directory, or in a copy of its file, without a server; none may have it open
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `weft rollback`.
#[derive(Args, Clone, Debug)]
pub struct RollbackArgs {
    /// The revision whose objects shall be there again
    #[arg(long, value_name = "N")]
    pub to_revision: u64,
    /// Only what is in this namespace
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until every connected sidecar has acknowledged the change
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = args::any_duration)]
    pub timeout: Duration,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the history, or verifies it.
pub async fn run(args: HistoryArgs) -> anyhow::Result<ExitCode> {
    let verifies = args.what == ["verify"];
    match &args.data_dir {
        Some(directory) if verifies => return verify_file(directory, args.output),
        Some(_) => bail!("--data-dir: is for weft history verify; the rest needs the control plane"),
        None => {}
    }
    let server = Server::new(&args.server).await?;
    if verifies {
        return verify(&server, args.output).await;
    }
    let target = match args.what.as_slice() {
        [] => None,
        words => {
            let kinds = Kinds::discover(&server).await?;
            let mut targets = targets::parse(&kinds, words)?;
            if targets.len() != 1 {
                bail!("{}: a history is of one kind or one object: KIND, KIND NAME or KIND/NAME", words.join(" "));
            }
            targets.pop()
        }
    };
    let value = server.get(&path(&args, target.as_ref())).await.map_err(older)?;
    let items = listing::items(&value);
    if args.diff {
        items.iter().for_each(print_diff);
        return Ok(server.exit_code());
    }
    let names: Vec<String> = items.iter().map(|item| text(item, "revision")).collect();
    listing::print(args.output, &value, &names, &table(items, args.output == Output::Wide), "no events");
    if let Some(next) = value["nextBefore"].as_u64().filter(|_| matches!(args.output, Output::Table | Output::Wide)) {
        anstream::eprintln!("older ones: --before {next}");
    }
    Ok(server.exit_code())
}

fn path(args: &HistoryArgs, target: Option<&Target>) -> String {
    let (limit, before) = (args.limit.to_string(), args.before.map(|before| before.to_string()));
    let name = target.and_then(|target| target.name.as_deref());
    // A name is in one namespace; without one, only what was asked for narrows the list.
    let namespaced = target.is_none_or(|target| target.kind.namespaced);
    let namespace = if name.is_some() { args.scope.namespace() } else { args.scope.namespace.as_deref() };
    let pairs = [
        ("kind", target.map(|target| target.kind.kind.as_str())),
        ("namespace", namespace.filter(|_| namespaced)),
        ("name", name),
        ("limit", Some(limit.as_str())),
        ("before", before.as_deref()),
        ("objects", args.diff.then_some("true")),
        ("statuses", (!args.all).then_some("false")),
    ];
    with_query("/weft/v1/history", &pairs)
}

fn object_name(item: &Value) -> String {
    let namespace = Some(text(item, "namespace")).filter(|namespace| !namespace.is_empty());
    let prefix = namespace.map_or(String::new(), |namespace| format!("{namespace}/"));
    format!("{} {prefix}{}", text(item, "kind"), text(item, "name"))
}

/// Events as rows.
pub fn table(items: &[Value], wide: bool) -> Table {
    let mut heading = vec!["REVISION", "TIME", "AUTHOR", "ACTION", "OBJECT", "REASON"];
    if wide {
        heading.push("HASH");
    }
    let mut table = Table::new(&heading);
    for item in items {
        let mut row = vec![text(item, "revision"), seconds(&text(item, "time")), text(item, "author")];
        row.extend([text(item, "action"), object_name(item), text(item, "reason")]);
        if wide {
            row.push(text(item, "hash"));
        }
        table.row(row);
    }
    table
}

/// A time without the fractions of its second.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

fn print_diff(item: &Value) {
    let reason = Some(text(item, "reason")).filter(|reason| !reason.is_empty());
    let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
    let heading = format!(
        "revision {} {} {} {} {}{reason}",
        text(item, "revision"),
        seconds(&text(item, "time")),
        text(item, "author"),
        text(item, "action"),
        object_name(item)
    );
    anstream::println!("{}", style::paint(style::STRONG, &heading));
    anstream::println!("{}", changes(item));
}

/// What an event changed: both sides are past.
fn changes(item: &Value) -> String {
    let name = object_name(item).replace(' ', "/");
    let titles = [&*format!("before/{name}"), &*format!("after/{name}")];
    diff::unified(titles, &item["beforeObject"], &item["object"])
}

async fn verify(server: &Server, output: Output) -> anyhow::Result<ExitCode> {
    match server.get("/weft/v1/history/verify").await {
        Ok(value) => verdict(&value, true, output),
        Err(CallError::Refused(refusal)) if refusal.body["verified"] == false => verdict(&refusal.body, false, output),
        Err(error) => Err(older(error)),
    }
}

/// The log of a control plane that does not run, or does not start. Nothing is changed.
fn verify_file(path: &Path, output: Output) -> anyhow::Result<ExitCode> {
    match weft_control_plane::store::verify(path) {
        Ok(head) => {
            let value = json!({ "verified": true, "revision": head.revision, "head": head.to_string() });
            verdict(&value, true, output)
        }
        // Nothing was proved, and nothing was found wrong.
        Err(error) if error.revision == 0 => Err(anyhow::Error::new(error).context(format!("{}", path.display()))),
        Err(error) => {
            let value = json!({ "verified": false, "revision": error.revision, "message": error.to_string() });
            verdict(&value, false, output)
        }
    }
}

fn verdict(value: &Value, good: bool, output: Output) -> anyhow::Result<ExitCode> {
    let mut table = Table::new(&["VERIFIED", "REVISION", "HEAD"]);
    let word = if good { style::paint(style::GOOD, "yes") } else { style::paint(style::BAD, "no") };
    table.row([word, text(value, "revision"), text(value, "head")]);
    listing::print(output, value, &[text(value, "head")], &table, "");
    if !good {
        bail!("the log is not what was written: {}", text(value, "message"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Goes back, or tells what that would do.
pub async fn rollback(args: RollbackArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let value =
        server.call(Call::new(Method::POST, "/weft/v1/rollback").body(&rollback_body(&args))).await.map_err(older);
    let value = value.with_context(|| format!("rollback to revision {}", args.to_revision))?;
    let items = listing::items(&value);
    let mut table = Table::new(&["OBJECT", "DONE"]);
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    for item in items {
        let done = match text(item, "action").as_str() {
            "create" => "created again",
            "delete" => "deleted",
            _ => "restored",
        };
        table.row([object_name(item), format!("{done}{suffix}")]);
    }
    let names: Vec<String> = items.iter().map(object_name).collect();
    listing::print(args.output, &value, &names, &table, "nothing to do: the objects are as they were then");
    if matches!(args.output, Output::Table | Output::Wide) && !items.is_empty() && !args.dry_run {
        anstream::eprintln!("now at revision {}", text(&value, "revision"));
    }
    if let Some(revision) = value["revision"].as_u64().filter(|_| args.wait && !args.dry_run) {
        wait::until_synced(&server, revision, args.timeout).await?;
    }
    Ok(server.exit_code())
}

fn rollback_body(args: &RollbackArgs) -> Value {
    let mut body = json!({ "toRevision": args.to_revision, "reason": args.reason, "dryRun": args.dry_run });
    if let Some(namespace) = &args.namespace {
        body["namespace"] = namespace.as_str().into();
    }
    body
}

/// A server without a history is no control plane of ours.
fn older(error: CallError) -> anyhow::Error {
    match error.code() {
        Some(404) => anyhow::anyhow!("{error}; this server keeps no history: is it a control plane of Weft?"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> HistoryArgs {
        let words = ["weft", "history"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::History(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_is_looked_for_in_its_namespace_and_a_kind_in_all() {
        let kinds = crate::kinds::tests::example();
        let asked = |line: &str| {
            let args = args(line);
            let target = if args.what.is_empty() { None } else { targets::parse(&kinds, &args.what).unwrap().pop() };
            path(&args, target.as_ref())
        };
        assert_eq!(asked(""), "/weft/v1/history?limit=50&statuses=false");
        assert_eq!(asked("svc/a"), "/weft/v1/history?kind=Service&namespace=default&name=a&limit=50&statuses=false");
        assert_eq!(
            asked("svc -n shop --before 7"),
            "/weft/v1/history?kind=Service&namespace=shop&limit=50&before=7&statuses=false"
        );
        assert_eq!(
            asked("ns/a --limit 3 --diff"),
            "/weft/v1/history?kind=Namespace&name=a&limit=3&objects=true&statuses=false"
        );
        assert_eq!(asked("--all"), "/weft/v1/history?limit=50", "with statuses");
    }

    #[test]
    fn a_rollback_is_of_everything_or_of_a_namespace() {
        let body = |line: &str| match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Rollback(args) => rollback_body(&args),
            other => panic!("{other:?}"),
        };
        let whole = json!({"toRevision": 3, "reason": "", "dryRun": false});
        assert_eq!(body("weft rollback --to-revision 3"), whole);
        let part = json!({"toRevision": 3, "reason": "", "dryRun": false, "namespace": "shop"});
        assert_eq!(body("weft rollback --to-revision 3 -n shop"), part);
    }

    #[test]
    fn the_sides_of_a_change_are_before_and_after() {
        let item = json!({"kind": "Service", "namespace": "shop", "name": "a",
            "beforeObject": {"spec": {"x": 1}}, "object": {"spec": {"x": 2}}});
        let text = anstream::adapter::strip_str(&changes(&item)).to_string();
        assert!(text.starts_with("--- before/Service/shop/a\n+++ after/Service/shop/a\n@@ "), "{text}");
    }

    #[test]
    fn an_event_is_one_line() {
        let item = json!({"revision": 7, "time": "2026-11-25T04:00:00.123Z", "author": "ann", "action": "update",
            "kind": "Service", "namespace": "shop", "name": "catalog", "reason": "because", "hash": "ab"});
        let text = table(&[item], true).render(None);
        let expected = "7         2026-11-25T04:00:00Z  ann     update  Service shop/catalog  because  ab\n";
        assert!(text.ends_with(expected), "{text}");
    }
}
