//! `--config`: the flags of `weft run` in a file, under the same names. What is given on the command line or in the
//! environment wins.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use anyhow::{Context as _, bail, ensure};
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, parser::ValueSource};
use serde_json::Value;
use weft_control_plane::source::did_you_mean;

use crate::args::{Cli, Command, RunArgs};

/// Bytes of a file.
const LARGEST: u64 = 1024 * 1024;

/// The arguments, with those of the file that they name.
pub fn merged(args: RunArgs) -> anyhow::Result<RunArgs> {
    match args.config.clone() {
        Some(file) => merge(&file, std::env::args_os().collect()),
        None => Ok(args),
    }
}

fn merge(file: &Path, line: Vec<OsString>) -> anyhow::Result<RunArgs> {
    let shown = || format!("--config {}", file.display());
    ensure!(std::fs::metadata(file).with_context(shown)?.len() <= LARGEST, "{}: larger than 1 MiB", shown());
    let text = std::fs::read_to_string(file).with_context(shown)?;
    let (flags, command) = flags(&text, &line).with_context(shown)?;
    let mut all = without_config(&line);
    let at = all.iter().position(|word| word == "run").context("`run` is not in the command line")? + 1;
    all.splice(at..at, flags);
    if let Some(command) = command {
        all.push("--".into());
        all.extend(command);
    }
    match Cli::command().try_get_matches_from(all).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(Cli { command: Command::Run(args) }) => Ok(args),
        Ok(_) => bail!("`run` is not the command"),
        // What clap says names the flag, which is the name in the file.
        Err(error) => bail!("{}: {}", shown(), error.to_string().trim_start_matches("error: ").trim_end()),
    }
}

/// The line without `--config FILE`, with which less is required.
fn without_config(line: &[OsString]) -> Vec<OsString> {
    let end = line.iter().position(|word| word == "--").unwrap_or(line.len());
    let (flags, app) = line.split_at(end);
    let mut kept = Vec::with_capacity(line.len());
    let mut words = flags.iter();
    while let Some(word) = words.next() {
        if word == "--config" {
            words.next();
        } else if !word.to_string_lossy().starts_with("--config=") {
            kept.push(word.clone());
        }
    }
    kept.extend_from_slice(app);
    kept
}

/// The flags that a file adds to a command line, and the app.
fn flags(text: &str, line: &[OsString]) -> anyhow::Result<(Vec<OsString>, Option<Vec<OsString>>)> {
    let written: BTreeMap<String, Value> = serde_saphyr::from_str(text)?;
    let matches = Cli::command().try_get_matches_from(line)?;
    let matches = matches.subcommand_matches("run").context("`run` is not the command")?;
    let cli = Cli::command();
    let run = cli.find_subcommand("run").context("there is no `run`")?;
    let given =
        |id: &str| matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
    let (mut flags, mut app) = (Vec::new(), None);
    for (key, value) in &written {
        let place = || format!("line {}: {key}", number(text, key));
        if key == "command" {
            let words = many(value).with_context(place)?;
            ensure!(!words.is_empty(), "{}: expected a list of words, such as [nginx, -g, daemon off;]", place());
            app = (!given("command")).then(|| words.into_iter().map(OsString::from).collect());
            continue;
        }
        let names = || run.get_arguments().filter_map(|arg| arg.get_long()).filter(|name| *name != "config");
        let Some(arg) = run.get_arguments().find(|arg| arg.get_long() == Some(key.as_str()) && key != "config") else {
            let hint = did_you_mean(key, names().chain(["command"]));
            bail!(
                "{}: there is no such flag of `weft run`{}",
                place(),
                if hint.is_empty() { hint } else { format!("; {hint}") }
            );
        };
        if given(arg.get_id().as_str()) {
            continue;
        }
        let flag = |value: &str| OsString::from(format!("--{key}={value}"));
        match (arg.get_action(), value) {
            (ArgAction::SetTrue, Value::Bool(true)) => flags.push(format!("--{key}").into()),
            (ArgAction::SetTrue, Value::Bool(false)) => {}
            (ArgAction::SetTrue, _) => bail!("{}: expected true or false", place()),
            (ArgAction::Append, _) => flags.extend(many(value).with_context(place)?.iter().map(|value| flag(value))),
            (_, value) => flags.push(flag(&one(value).with_context(place)?)),
        }
    }
    Ok((flags, app))
}

/// The line on which a key of the outermost level stands.
fn number(text: &str, key: &str) -> usize {
    let is_key = |line: &str| {
        let line = line.trim_start_matches(['{', '"', '\'', ' ']);
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    text.lines().position(is_key).map_or(1, |index| index + 1)
}

fn one(value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(is) => Ok(is.to_string()),
        _ => bail!("expected one value"),
    }
}

/// A list, a single value, or, for labels, names and values.
fn many(value: &Value) -> anyhow::Result<Vec<String>> {
    match value {
        Value::Array(values) => values.iter().map(one).collect(),
        Value::Object(pairs) => pairs.iter().map(|(name, value)| Ok(format!("{name}={}", one(value)?))).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(text: &str, line: &str) -> anyhow::Result<RunArgs> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let line = line.replace("FILE", &file.path().display().to_string());
        super::merge(file.path(), line.split(' ').map(Into::into).collect())
    }

    const FILE: &str = "name: web\nport: [8080/http, 9090]\nlabel: {version: v1}\nupstream: catalog=9001\n\
                        admin-listen: 127.0.0.1:7\ncommand: [app, --name, of the app]\n";

    #[test]
    fn a_file_has_the_flags_under_their_names() {
        let args = merge(FILE, "weft run --config FILE").unwrap();
        assert_eq!(args.name, "web");
        assert_eq!(args.port, ["8080/http", "9090"]);
        assert_eq!(args.label, ["version=v1"]);
        assert_eq!(args.upstream[0].flag, "catalog=9001");
        assert_eq!(args.admin_listen.unwrap().port(), 7);
        assert_eq!(args.command, ["app", "--name", "of the app"]);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let args = merge(FILE, "weft run --config FILE --name shop --port 1 -- other").unwrap();
        assert_eq!((args.name.as_str(), &args.port[..]), ("shop", &["1".to_owned()][..]));
        assert_eq!(args.command, ["other"]);
        assert_eq!(args.label, ["version=v1"], "what is not given stays");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_with_line_and_suggestion() {
        for (text, expected) in [
            ("name: web\nprot: 80\n", "line 2: prot: there is no such flag of `weft run`; did you mean \"port\"?"),
            ("name: web\nconfig: x\n", "line 2: config: there is no such flag"),
            (
                "name: web\n\"commnd\": [a]\n",
                "line 2: commnd: there is no such flag of `weft run`; did you mean \"command\"?",
            ),
            ("name: {a: {b: c}}\ncommand: [a]\n", "line 1: name: expected one value"),
            ("name: web\ncommand: []\n", "line 2: command: expected a list of words"),
            ("name: web\nupstream: catalog\ncommand: [a]\n", "--upstream"),
            ("name: web\n", "<COMMAND>"),
            ("command: [a]\n", "--name"),
            ("name: a\nname: b\n", "name"),
            ("name: [\n", "line"),
        ] {
            let error = format!("{:#}", merge(text, "weft run --config FILE").expect_err(text));
            assert!(error.starts_with("--config /") && error.contains(expected), "{text}: {error}");
        }
    }
}
