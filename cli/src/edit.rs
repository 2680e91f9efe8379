//! `weft edit`: one object in an editor; what cannot be saved comes back with the reason on top.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use http::Method;
use rand::Rng as _;
use serde_json::Value;
use weft_control_plane::source::Problem;

use crate::{
    kinds::{Kind, Kinds},
    merge,
    objects::{self, Source},
    server::{Call, CallError, Server, ServerArgs, with_query},
    targets, yaml,
};

const INTRODUCTION: &str = "Edit the object below. Lines that start with '#' are left out; an empty file or one \
that is saved as it is changes nothing.";

/// Flags of `weft edit`.
#[derive(Args, Clone, Debug)]
pub struct EditArgs {
    /// KIND NAME or KIND/NAME
    #[arg(required = true, value_name = "KIND NAME")]
    pub what: Vec<String>,
    /// Namespace of the object
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What became of an edited text.
enum Saved {
    Changed,
    /// Shown again with the reason, over this state of the object.
    Again {
        live: Value,
        text: String,
        why: String,
    },
    Unchanged,
}

/// Opens the editor until the object is saved, or left alone.
pub async fn run(args: EditArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let kinds = Kinds::discover(&server).await?;
    let (kind, name) = targets::one(&kinds, &args.what)?;
    let mut live = targets::object(&server, &kind, &args.namespace, &name).await?;
    let mut text = yaml::text(&editable(&live));
    let mut comment = INTRODUCTION.to_owned();
    let file = TemporaryFile::new(&name)?;
    loop {
        let shown = format!("{}{text}", commented(&comment));
        let edited = file.edit(&shown)?;
        // The reason was read, and nothing was done about it.
        if uncommented(&edited) == text && comment != INTRODUCTION {
            file.keep();
            bail!("{}: not saved: {comment}\nthe text is kept in {}", kind.shown(&name), file.path.display());
        }
        match save(&server, &args, &kind, &name, live, &uncommented(&edited)).await? {
            Saved::Changed => {
                objects::print_done(&kind.shown(&name), "edited");
                return Ok(server.exit_code());
            }
            Saved::Unchanged => {
                anstream::eprintln!("{}: nothing changed", kind.shown(&name));
                return Ok(ExitCode::SUCCESS);
            }
            Saved::Again { live: newer, text: again, why } => {
                live = newer;
                text = again;
                comment = why;
            }
        }
    }
}

async fn save(
    server: &Server,
    args: &EditArgs,
    kind: &Kind,
    name: &str,
    live: Value,
    text: &str,
) -> anyhow::Result<Saved> {
    let again = |live: Value, why: String| Saved::Again { live, text: text.to_owned(), why };
    if text.trim().is_empty() {
        return Ok(Saved::Unchanged);
    }
    let before = editable(&live);
    let edited = match parse(text, &before) {
        Ok(edited) => edited,
        Err(why) => return Ok(again(live, why)),
    };
    let mut patch = merge::patch(&before, &before, &edited);
    if patch.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(Saved::Unchanged);
    }
    // The server refuses the patch when somebody else was faster.
    patch["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    let query =
        [("fieldManager", Some("weft")), ("fieldValidation", Some("Strict")), ("reason", args.reason.as_deref())];
    let path = kind.path(Some(&args.namespace), Some(name));
    match server.call(Call::new(Method::PATCH, with_query(&path, &query)).merge_patch(&patch)).await {
        Ok(_) => Ok(Saved::Changed),
        Err(CallError::Refused(refusal)) if refusal.code == 409 => {
            let newer = targets::object(server, kind, &args.namespace, name).await?;
            if let Some(metadata) = patch["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            let merged = merge::apply(&editable(&newer), &patch);
            let why = "somebody else changed the object meanwhile; your changes are below, put onto theirs: look again";
            Ok(Saved::Again { live: newer, text: yaml::text(&merged), why: why.to_owned() })
        }
        Err(CallError::Refused(refusal)) => Ok(again(live, reasons(&refusal))),
        Err(error) => Err(error.into()),
    }
}

/// The edited object, or what is wrong with it.
fn parse(text: &str, before: &Value) -> Result<Value, String> {
    let source = Source { file: "edited".to_owned(), text: text.to_owned() };
    let told = |problem: &Problem| {
        let place = if problem.line > 0 { format!("line {}: ", problem.line) } else { String::new() };
        let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
        let hint = if problem.hint.is_empty() { String::new() } else { format!(" ({})", problem.hint) };
        format!("{place}{path}{}{hint}", problem.message)
    };
    let problems = objects::problems(&source);
    if !problems.is_empty() {
        return Err(problems.iter().map(told).collect::<Vec<_>>().join("\n"));
    }
    let mut found = objects::parse(&source).map_err(|problem| told(&problem))?;
    let (1, Some(edited)) = (found.len(), found.pop()) else { return Err("there must be one object".to_owned()) };
    for field in ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"] {
        if edited.pointer(field) != before.pointer(field) {
            let name = field.trim_start_matches('/').replace('/', ".");
            return Err(format!("{name}: cannot be changed; weft apply makes other objects"));
        }
    }
    Ok(edited)
}

fn reasons(refusal: &crate::server::Refusal) -> String {
    if refusal.causes.is_empty() {
        return refusal.message.clone();
    }
    refusal.causes.iter().map(|(field, text)| format!("{field}: {text}")).collect::<Vec<_>>().join("\n")
}

/// What is shown: neither status nor bookkeeping.
fn editable(live: &Value) -> Value {
    objects::as_written(live)
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("# {line}\n")).collect()
}

fn uncommented(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

/// A file that only we can read, gone when we are.
struct TemporaryFile {
    path: PathBuf,
    keep: std::cell::Cell<bool>,
}

impl TemporaryFile {
    fn new(name: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let random: u64 = rand::rng().random();
        let path = std::env::temp_dir().join(format!("weft-edit-{name}-{random:016x}.yaml"));
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, keep: std::cell::Cell::new(false) })
    }

    fn keep(&self) {
        self.keep.set(true);
    }

    /// The text as the editor leaves it.
    fn edit(&self, text: &str) -> anyhow::Result<String> {
        let write = || std::fs::File::create(&self.path)?.write_all(text.as_bytes());
        write().with_context(|| format!("write {}", self.path.display()))?;
        open_editor(&self.path)?;
        std::fs::read_to_string(&self.path).with_context(|| format!("read {}", self.path.display()))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.keep.get() {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

fn open_editor(file: &Path) -> anyhow::Result<()> {
    let given = ["WEFT_EDITOR", "KUBE_EDITOR", "VISUAL", "EDITOR"];
    let editor = given.iter().find_map(|name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // An editor may come with flags, as in `code --wait`; the shell takes them apart.
    let status =
        std::process::Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg(&editor).arg(file).status();
    let status = status.with_context(|| format!("EDITOR: {editor}: cannot be started"))?;
    ensure!(status.success(), "EDITOR: {editor}: ended with {status}; nothing was changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn comments_go_and_come() {
        let text = format!("{}kind: Service\n", commented("one\ntwo"));
        assert_eq!(text, "# one\n# two\nkind: Service\n");
        assert_eq!(uncommented(&text), "kind: Service\n");
    }

    #[test]
    fn an_edited_object_stays_the_same_object() {
        let before = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}]}});
        let text = yaml::text(&before);
        assert_eq!(parse(&text, &before).unwrap(), before);
        let renamed = parse(&text.replace("name: s\n", "name: t\n"), &before).unwrap_err();
        assert_eq!(renamed, "metadata.name: cannot be changed; weft apply makes other objects");
        let wrong = parse(&text.replace("port: 80", "prot: 80"), &before).unwrap_err();
        assert!(wrong.starts_with("line ") && wrong.contains("did you mean"), "{wrong}");
        assert!(parse("a: [", &before).is_err());
        assert_eq!(parse(&format!("{text}---\n{text}"), &before).unwrap_err().lines().count(), 1);
    }
}
