//! `weft diff`: what applying files would change, as a unified diff of YAML.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use crate::{
    apply,
    kinds::Kinds,
    objects,
    server::{Server, ServerArgs},
    style::{BAD, GOOD, STRONG},
    yaml,
};

/// Flags of `weft diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// File, directory of .yaml, .yml and .json files, or - for standard input; may be repeated
    #[arg(long = "file", short, value_name = "FILE|DIR|-", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none [default: default]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the differences: exit code 1 when there are some, 0 when there are none.
pub async fn run(args: DiffArgs) -> anyhow::Result<ExitCode> {
    let sources = objects::read(&args.files)?;
    let server = Server::new(&args.server).await?;
    let kinds = Kinds::discover(&server).await?;
    let manifests = objects::load(&sources, &kinds, args.namespace.as_deref())?;
    let mut different = false;
    for manifest in &manifests {
        let (after, before) = apply::preview(&server, manifest).await?;
        let name = format!("{}/{}", manifest.namespace, manifest.shown());
        let name = name.trim_start_matches('/');
        let text = unified([&format!("live/{name}"), &format!("file/{name}")], &before, &after);
        different |= !text.is_empty();
        anstream::print!("{text}");
    }
    Ok(ExitCode::from(u8::from(different)))
}

/// The difference of two objects as they would be written in files, under these titles; null is an object that does not exist.
pub fn unified([old, new]: [&str; 2], before: &Value, after: &Value) -> String {
    let text = |value: &Value| if value.is_null() { String::new() } else { yaml::text(&objects::as_written(value)) };
    let (before, after) = (text(before), text(after));
    if before == after {
        return String::new();
    }
    let diff = TextDiff::from_lines(&before, &after);
    let mut shown = format!("{STRONG}--- {old}{STRONG:#}\n{STRONG}+++ {new}{STRONG:#}\n");
    for hunk in diff.unified_diff().iter_hunks() {
        shown.push_str(&format!("{}\n", hunk.header().to_string().trim_end()));
        for change in hunk.iter_changes() {
            let line = change.value().trim_end_matches('\n');
            shown.push_str(&match change.tag() {
                ChangeTag::Delete => format!("{BAD}-{line}{BAD:#}\n"),
                ChangeTag::Insert => format!("{GOOD}+{line}{GOOD:#}\n"),
                ChangeTag::Equal => format!(" {line}\n"),
            });
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(before: &Value, after: &Value) -> String {
        anstream::adapter::strip_str(&unified(["live/shop/service/s", "file/shop/service/s"], before, after))
            .to_string()
    }

    #[test]
    fn a_changed_line_is_shown_twice_and_what_the_server_writes_not_at_all() {
        let object = |port: u16, uid: &str| json!({"metadata": {"name": "s", "uid": uid}, "spec": {"port": port}});
        let text = plain(&object(80, "1"), &object(81, "2"));
        assert!(text.starts_with("--- live/shop/service/s\n+++ file/shop/service/s\n@@ "), "{text}");
        assert!(text.contains("\n-  port: 80\n+  port: 81\n"), "{text}");
        assert!(!text.contains("uid"));
        assert_eq!(plain(&object(80, "1"), &object(80, "2")), "");
    }

    #[test]
    fn a_new_object_is_all_added() {
        let text = plain(&Value::Null, &json!({"kind": "Service"}));
        assert!(text.ends_with("+kind: Service\n"), "{text}");
    }
}
