//! `weft delete`: objects by name, by label, or those of files (in the reverse order of applying).

use std::{path::PathBuf, process::ExitCode};

use anyhow::{bail, ensure};
use clap::Args;
use http::Method;

use crate::{
    kinds::{Kind, Kinds},
    objects,
    server::{Call, Server, ServerArgs, with_query},
    style,
    targets::{self, ScopeArgs},
};

/// Flags of `weft delete`.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// KIND NAME..., KIND/NAME..., or a KIND with -l or --all
    #[arg(value_name = "KIND [NAME]", required_unless_present = "files", conflicts_with = "files")]
    pub what: Vec<String>,
    /// The objects of a file, a directory or - (standard input)
    #[arg(long = "file", short, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// All objects of the kind in the namespace
    #[arg(long, conflicts_with_all = ["selector", "files"])]
    pub all: bool,
    /// What is not there is no failure
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Let the server check everything and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// One object to delete.
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
}

/// Deletes; one object that fails does not stop the others.
pub async fn run(args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let kinds = Kinds::discover(&server).await?;
    let doomed = if args.files.is_empty() { named(&server, &kinds, &args).await? } else { of_files(&kinds, &args)? };
    let mut failed = 0;
    for object in &doomed {
        let Doomed { kind, namespace, name } = object;
        let query = [("dryRun", args.dry_run.then_some("All")), ("reason", args.reason.as_deref())];
        let path = with_query(&kind.path(Some(namespace), Some(name)), &query);
        match server.call(Call::new(Method::DELETE, path)).await {
            Ok(_) => {
                let suffix = if args.dry_run { " (dry run)" } else { "" };
                objects::print_done(&kind.shown(name), &format!("deleted{suffix}"));
            }
            Err(error) if error.code() == Some(404) && args.ignore_not_found => {}
            Err(error) => {
                failed += 1;
                style::fail(&format!("{:#}", targets::explained(&server, kind, namespace, name, error).await));
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} objects were not deleted", doomed.len());
    }
    if doomed.is_empty() {
        anstream::eprintln!("nothing found");
    }
    Ok(server.exit_code())
}

async fn named(server: &Server, kinds: &Kinds, args: &DeleteArgs) -> anyhow::Result<Vec<Doomed>> {
    let mut doomed = Vec::new();
    for target in targets::parse(kinds, &args.what)? {
        if let Some(name) = target.name {
            ensure!(!args.scope.all_namespaces, "{name}: a name is in one namespace: use -n instead of -A");
            ensure!(args.scope.selector.is_none() && !args.all, "{name}: names go without -l and --all");
            let namespace = args.scope.namespace().unwrap_or("default").to_owned();
            doomed.push(Doomed { kind: target.kind, namespace, name });
            continue;
        }
        let plural = &target.kind.plural;
        ensure!(args.all || args.scope.selector.is_some(), "{plural}: which ones? Give names, -l LABELS or --all");
        for object in targets::list(server, &target.kind, &args.scope).await? {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            doomed.push(Doomed { kind: target.kind.clone(), namespace: text("namespace"), name: text("name") });
        }
    }
    Ok(doomed)
}

fn of_files(kinds: &Kinds, args: &DeleteArgs) -> anyhow::Result<Vec<Doomed>> {
    let manifests = objects::load(&objects::read(&args.files)?, kinds, args.scope.namespace.as_deref())?;
    let doomed = manifests.into_iter().rev();
    Ok(doomed.map(|of| Doomed { kind: of.kind, namespace: of.namespace, name: of.name }).collect())
}
