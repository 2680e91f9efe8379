//! `weft token create`: a token with which one workload enrols, once.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use crate::{
    args,
    listing::text,
    server::{Call, Server, ServerArgs},
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
    /// Make a token for one workload; it can be used once
    Create(CreateArgs),
}

/// Flags of `weft token create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Service account that the workload gets
    #[arg(long, value_name = "SA")]
    pub service_account: String,
    /// Namespace that the workload gets
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// How long it can be used
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = args::any_duration)]
    pub ttl: Duration,
    /// File for it, readable only by you [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Makes the token: the text of a file for `weft run --token`.
pub async fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create(args) = args.command;
    let server = Server::new(&args.server).await?;
    let body = json!({
        "namespace": args.namespace, "serviceAccount": args.service_account, "ttlSeconds": args.ttl.as_secs(),
    });
    let answer =
        server.call(Call::new(Method::POST, "/weft/v1/tokens").body(&body)).await.map_err(|error| {
            match error.code() {
                Some(404 | 405) => anyhow::anyhow!(
                    "{error}; this control plane makes no tokens: with --dev, \
                the token of its data directory enrols any local workload"
                ),
                _ => error.into(),
            }
        })?;
    let token = Some(text(&answer, "token")).filter(|token| !token.is_empty());
    let token =
        token.with_context(|| format!("{}: an answer without a token; do the versions match?", server.url()))?;
    // The first line proves who asks, the rest proves the control plane to the sidecar.
    let content = format!("{token}\n{}", text(&answer, "roots"));
    match &args.out {
        None => print!("{content}"),
        Some(file) => {
            write_private(file, content.as_bytes()).with_context(|| format!("--out: {}", file.display()))?;
            anstream::eprintln!("{}: good for one use within {} s", file.display(), args.ttl.as_secs());
        }
    }
    Ok(server.exit_code())
}

fn write_private(file: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // A file that is there may be open to others: it is not used.
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.write_all(content)
}
