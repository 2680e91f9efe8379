//! `weft token`: the tokens with which operators use the API: made, listed, revoked by administrators.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

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

/// Flags of `weft token create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Who will use it, as the history shall name them
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What it allows
    #[arg(long, value_enum, default_value = "viewer")]
    pub role: Role,
    /// Allow it in this namespace only [default: all]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// How long it can be used [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = args::any_duration)]
    pub expires: Option<Duration>,
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
    match &args.out {
        None => println!("{token}"),
        Some(file) => {
            let written = write_private(file, &format!("{token}\n"));
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
    let role = match args.role {
        Role::Admin => "admin",
        Role::Editor => "editor",
        Role::Viewer => "viewer",
    };
    let mut body = json!({ "name": args.name, "role": role });
    if let Some(namespace) = &args.namespace {
        body["namespace"] = namespace.as_str().into();
    }
    if let Some(expires) = args.expires {
        body["expiresInSeconds"] = expires.as_secs().into();
    }
    body
}

fn table(items: &[Value]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "ROLE", "NAMESPACE", "STATE", "EXPIRES", "LAST USED"]);
    let or = |value: String, otherwise: &str| if value.is_empty() { otherwise.to_owned() } else { value };
    for item in items {
        let expired = item["expired"] == true;
        let state = if expired { style::paint(BAD, "expired") } else { style::paint(GOOD, "valid") };
        let mut row = vec![text(item, "id"), text(item, "name"), text(item, "role"), or(text(item, "namespace"), "*")];
        row.extend([state, or(text(item, "expires"), "never"), or(text(item, "lastUsed"), "-")]);
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

    #[test]
    fn what_is_not_said_is_not_asked_for() {
        let body = |flags: &[&str]| {
            let line = ["weft", "token", "create", "ann"].iter().chain(flags);
            match Cli::try_parse_from(line).unwrap().command {
                Command::Token(TokenArgs { command: TokenCommand::Create(args) }) => wanted(&args),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(body(&[]), json!({"name": "ann", "role": "viewer"}));
        assert_eq!(
            body(&["--role", "editor", "-n", "shop", "--expires", "2h"]),
            json!({"name": "ann", "role": "editor", "namespace": "shop", "expiresInSeconds": 7200})
        );
    }

    #[test]
    fn a_token_is_one_line() {
        let item = json!({"id": "t1", "name": "ann", "role": "viewer", "namespace": null, "expires": null,
            "lastUsed": null, "expired": false});
        let text = anstream::adapter::strip_str(&table(&[item]).render(None)).to_string();
        assert!(text.ends_with("t1  ann   viewer  *          valid  never    -\n"), "{text}");
    }
}
