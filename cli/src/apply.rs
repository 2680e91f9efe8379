//! `weft apply`: makes the objects of files so, each by itself; fields that left a file leave the object.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use http::Method;
use serde_json::Value;

use crate::{
    args,
    kinds::Kinds,
    merge,
    objects::{self, Manifest},
    server::{Call, CallError, Server, ServerArgs, with_query},
    style, wait,
};

/// Flags of `weft apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// File, directory of .yaml, .yml and .json files, or - for standard input; may be repeated
    #[arg(long = "file", short, value_name = "FILE|DIR|-", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none [default: default]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Let the server check everything and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until every connected sidecar has acknowledged the change
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = args::any_duration)]
    pub timeout: Duration,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What became of an object.
struct Applied {
    done: &'static str,
    revision: Option<u64>,
}

/// Applies everything that loads; one object that fails does not stop the others.
pub async fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let sources = objects::read(&args.files)?;
    let server = Server::new(&args.server).await?;
    let kinds = Kinds::discover(&server).await?;
    let manifests = objects::load(&sources, &kinds, args.namespace.as_deref())?;
    let (mut failed, mut revision) = (0, None);
    for manifest in &manifests {
        match apply(&server, manifest, &args).await {
            Ok(applied) => {
                let suffix = if args.dry_run { " (dry run)" } else { "" };
                objects::print_done(&manifest.shown(), &format!("{}{suffix}", applied.done));
                revision = revision.max(applied.revision);
            }
            Err(error) => {
                failed += 1;
                style::fail(&refused(manifest, &error));
            }
        }
    }
    if failed > 0 {
        anyhow::bail!("{failed} of {} objects were not applied", manifests.len());
    }
    // What was the same already may have been written a moment ago: it is waited for as well.
    if let Some(revision) = revision.filter(|_| args.wait && !args.dry_run) {
        wait::until_synced(&server, revision, args.timeout).await?;
    }
    Ok(server.exit_code())
}

/// Where the object stands, and each thing that the server found wrong with it.
pub fn refused(manifest: &Manifest, error: &CallError) -> String {
    let mut text = format!("{}: {}", manifest.file, manifest.shown());
    match error {
        CallError::Refused(refusal) if !refusal.causes.is_empty() => {
            for (field, message) in &refusal.causes {
                text.push_str(&format!("\n  {field}: {message}"));
            }
        }
        error => text.push_str(&format!(": {error}")),
    }
    text
}

async fn apply(server: &Server, manifest: &Manifest, args: &ApplyArgs) -> Result<Applied, CallError> {
    let live = live(server, manifest).await?;
    let made = send(server, manifest, live.as_ref(), args.dry_run, args.reason.as_deref()).await?;
    let Some(live) = live else { return Ok(Applied { done: "created", revision: revision(&made) }) };
    // What the server fills in may make a patch that changes nothing.
    let same = if args.dry_run {
        objects::as_written(&made) == objects::as_written(&live)
    } else {
        made["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
    };
    let done = if same { "unchanged" } else { "configured" };
    Ok(Applied { done, revision: revision(&made) })
}

/// Creates the object, or patches `live`; answers what it is then, or would be.
async fn send(
    server: &Server,
    manifest: &Manifest,
    live: Option<&Value>,
    dry_run: bool,
    reason: Option<&str>,
) -> Result<Value, CallError> {
    let query = [
        ("fieldManager", Some("weft")),
        ("fieldValidation", Some("Strict")),
        ("dryRun", dry_run.then_some("All")),
        ("reason", reason),
    ];
    let (wanted, title) = (merge::annotated(&manifest.object), manifest.title());
    let Some(live) = live else {
        let path = with_query(&manifest.collection(), &query);
        return server.call(Call::new(Method::POST, path).body(&wanted).about(&title)).await;
    };
    let patch = merge::patch(&merge::last_applied(live), live, &wanted);
    if patch.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(live.clone());
    }
    let path = with_query(&manifest.path(), &query);
    server.call(Call::new(Method::PATCH, path).merge_patch(&patch).about(&title)).await
}

/// The object as it is, if it is.
pub async fn live(server: &Server, manifest: &Manifest) -> Result<Option<Value>, CallError> {
    match server.get(&manifest.path()).await {
        Ok(live) => Ok(Some(live)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the object would be after applying, as the server says, and what it is; null when it is not.
pub async fn preview(server: &Server, manifest: &Manifest) -> anyhow::Result<(Value, Value)> {
    let told = |error: CallError| anyhow::anyhow!(refused(manifest, &error));
    let live = live(server, manifest).await.map_err(told)?;
    let after = send(server, manifest, live.as_ref(), true, None).await.map_err(told)?;
    Ok((after, live.unwrap_or_default()))
}

fn revision(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}
