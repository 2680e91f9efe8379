//! `weft token`: the tokens with which operators use the API, and those with which workloads get their first certificate:
//! made, listed, revoked by administrators.

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use crate::{
    args,
    listing::{self, Output, items, text},
    objects,
    server::{Call, Server, ServerArgs},
    style::{self, BAD, GOOD},
    table::Table,
};

/// Flags of `weft token`.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What can be done with tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; it is shown once and never again
    Create(CreateArgs),
    /// List the tokens, without their secrets
    List(ListArgs),
    /// End a token's life
    Revoke(RevokeArgs),
}

/// Flags of `weft token create`. With `--service-account` it is a join token, otherwise an operator's.
#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "weft token create NAME [--role ROLE] [--namespace NS] [--expires TIME] [OPTIONS]\n       \
                      weft token create --service-account SA [--namespace NS] [--ttl TIME] [--name WORKLOAD] \
                      [--label K=V]... [OPTIONS]",
    after_help = "The first form makes a token for the operator API. The second makes a join token: a workload gets its \
                  first certificate with it, once, by weft run --token FILE."
)]
pub struct CreateArgs {
    /// Who will use it, as the history shall name them
    #[arg(value_name = "NAME", required_unless_present = "service_account", conflicts_with = "service_account")]
    pub user: Option<String>,
    /// What it allows [default: viewer]
    #[arg(long, value_enum, conflicts_with = "service_account")]
    pub role: Option<Role>,
    /// Namespace of the workload [default: default]; of an operator: allow it in this namespace only [default: all]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// How long it can be used [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = args::any_duration, conflicts_with = "service_account")]
    pub expires: Option<Duration>,
    /// Make a join token, for the identity of this service account
    #[arg(long, value_name = "SA")]
    pub service_account: Option<String>,
    /// How long it can be used, once, at most 24h [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = args::any_duration, conflicts_with = "user")]
    pub ttl: Option<Duration>,
    /// The only workload that may be registered with the certificate, or the --name of weft run [default: any]
    #[arg(long, value_name = "WORKLOAD", conflicts_with = "user")]
    pub name: Option<String>,
    /// A label of the workload; when there are any, it must have all of them and no other [default: any]
    #[arg(long = "label", value_name = "K=V", value_parser = label, conflicts_with = "user")]
    pub labels: Vec<(String, String)>,
    /// New file for it, readable only by you [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What a token allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Role {
    /// Everything, tokens too
    Admin,
    /// Reads, and writes of objects
    Editor,
    /// Reads, and requests as they end (weft tap)
    Observer,
    /// Reads
    Viewer,
}

/// Flags of `weft token list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `weft token revoke`.
#[derive(Args, Clone, Debug)]
pub struct RevokeArgs {
    /// Id of the token, as the list has it
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Does it.
pub async fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        TokenCommand::Create(args) => create(args).await,
        TokenCommand::List(args) => {
            let server = Server::new(&args.server).await?;
            let value = server.get("/weft/v1/tokens").await?;
            let names: Vec<String> = items(&value).iter().map(|item| text(item, "id")).collect();
            listing::print(args.output, &value, &names, &table(items(&value)), "no tokens");
            Ok(server.exit_code())
        }
        TokenCommand::Revoke(args) => {
            let server = Server::new(&args.server).await?;
            // An id of the server is made of letters that need no escaping; others do not exist.
            let id: String = form_urlencoded::byte_serialize(args.id.as_bytes()).collect();
            server.call(Call::new(Method::DELETE, format!("/weft/v1/tokens/{id}"))).await?;
            objects::print_done(&format!("token/{}", args.id), "revoked");
            Ok(server.exit_code())
        }
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let answer = server.call(Call::new(Method::POST, "/weft/v1/tokens").body(&wanted(&args))).await?;
    let token = Some(text(&answer, "token")).filter(|token| !token.is_empty());
    let token =
        token.with_context(|| format!("{}: an answer without a token; do the versions match?", server.url()))?;
    // A sidecar needs the roots beside its token, to know the control plane by.
    let content = format!("{token}\n{}", text(&answer, "roots"));
    match &args.out {
        None => print!("{content}"),
        Some(file) => {
            let written = write_private(file, &content);
            written.with_context(|| {
                let id = text(&answer, "id");
                format!("--out: {}: the token is lost: end it with weft token revoke {id}", file.display())
            })?;
            objects::print_done(&format!("token/{}", text(&answer, "id")), "created");
        }
    }
    Ok(server.exit_code())
}

fn wanted(args: &CreateArgs) -> Value {
    let Some(account) = &args.service_account else { return wanted_of_operator(args) };
    let namespace = args.namespace.as_deref().unwrap_or("default");
    let mut body = json!({ "kind": "join", "namespace": namespace, "serviceAccount": account });
    if let Some(name) = &args.name {
        body["name"] = name.as_str().into();
    }
    if !args.labels.is_empty() {
        body["labels"] = json!(args.labels.iter().cloned().collect::<BTreeMap<_, _>>());
    }
    if let Some(ttl) = args.ttl {
        body["ttlSeconds"] = ttl.as_secs().into();
    }
    body
}

fn wanted_of_operator(args: &CreateArgs) -> Value {
    let role = match args.role {
        Some(Role::Admin) => "admin",
        Some(Role::Editor) => "editor",
        Some(Role::Observer) => "observer",
        Some(Role::Viewer) | None => "viewer",
    };
    let mut body = json!({ "name": args.user, "role": role });
    if let Some(namespace) = &args.namespace {
        body["namespace"] = namespace.as_str().into();
    }
    if let Some(expires) = args.expires {
        body["expiresInSeconds"] = expires.as_secs().into();
    }
    body
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

fn table(items: &[Value]) -> Table {
    let mut table = Table::new(&["ID", "KIND", "NAME", "ALLOWS", "NAMESPACE", "STATE", "EXPIRES", "LAST USED"]);
    let or = |value: String, otherwise: &str| if value.is_empty() { otherwise.to_owned() } else { value };
    for item in items {
        let join = item["kind"] == "join";
        let state = match item["state"].as_str() {
            Some(state) => state,
            None if item["expired"] == true => "expired",
            None => "valid",
        };
        let state = style::paint(if matches!(state, "valid" | "used") { GOOD } else { BAD }, state);
        let (allows, used) = if join {
            (format!("serviceaccount/{}", text(item, "serviceAccount")), text(item, "used"))
        } else {
            (text(item, "role"), text(item, "lastUsed"))
        };
        let kind = if join { "join" } else { "api" }.to_owned();
        let name = or(text(item, "name"), "*");
        let mut row = vec![text(item, "id"), kind, name, allows, or(text(item, "namespace"), "*")];
        row.extend([state, or(text(item, "expires"), "never"), or(used, "-")]);
        table.row(row);
    }
    table
}

fn write_private(file: &std::path::Path, content: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // A file that is there may be open to others: it is not used.
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(flags: &[&str]) -> Result<CreateArgs, clap::Error> {
        let line = ["weft", "token", "create"].iter().chain(flags);
        Cli::try_parse_from(line).map(|cli| match cli.command {
            Command::Token(TokenArgs { command: TokenCommand::Create(args) }) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_is_not_said_is_not_asked_for() {
        let body = |flags: &[&str]| wanted(&parse(flags).unwrap());
        assert_eq!(body(&["ann"]), json!({"name": "ann", "role": "viewer"}));
        assert_eq!(
            body(&["ann", "--role", "editor", "-n", "shop", "--expires", "2h"]),
            json!({"name": "ann", "role": "editor", "namespace": "shop", "expiresInSeconds": 7200})
        );
        assert_eq!(
            body(&["--service-account", "web"]),
            json!({"kind": "join", "namespace": "default", "serviceAccount": "web"})
        );
        let all = ["--service-account", "web", "-n", "shop", "--ttl", "10m", "--name", "w", "--label", "app=w"];
        assert_eq!(
            body(&[&all[..], &["--label", "empty="]].concat()),
            json!({"kind": "join", "namespace": "shop", "serviceAccount": "web", "name": "w", "ttlSeconds": 600,
                "labels": {"app": "w", "empty": ""}})
        );
    }

    #[test]
    fn the_two_forms_do_not_mix_and_the_error_says_which_flag_is_whose() {
        for (flags, part) in [
            (&[][..], "weft token create --service-account SA"),
            (&["ann", "--service-account", "web"], "cannot be used with"),
            (&["--service-account", "web", "--role", "admin"], "cannot be used with"),
            (&["--service-account", "web", "--expires", "1h"], "cannot be used with"),
            (&["ann", "--ttl", "1h"], "cannot be used with"),
            (&["ann", "--label", "a=b"], "cannot be used with"),
            (&["--service-account", "web", "--label", "a"], "expected KEY=VALUE"),
        ] {
            let error = parse(flags).unwrap_err().to_string();
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }

    #[test]
    fn a_token_is_one_line() {
        let api = json!({"kind": "api", "id": "t1", "name": "ann", "role": "viewer", "namespace": null,
            "expires": null, "lastUsed": null, "expired": false});
        let join = json!({"kind": "join", "id": "t2", "name": null, "serviceAccount": "web", "namespace": "shop",
            "labels": {}, "expires": "soon", "used": "now", "state": "used", "expired": false});
        let text = anstream::adapter::strip_str(&table(&[api, join]).render(None)).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["t1", "api", "ann", "viewer", "*", "valid", "never", "-"]);
        assert_eq!(lines[2], ["t2", "join", "*", "serviceaccount/web", "shop", "used", "soon", "now"]);
    }
}
