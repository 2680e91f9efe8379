//! Files of manifests and compose files: their documents, those with pods or services changed, all others passed on byte for byte.

use serde_json::Value;

use super::{
    Done, Options, compose, emit, pod,
    tree::{self, Node},
    undo, workload,
};
use crate::source::Problem;

/// What to do with the pods of a text.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Put sidecars in.
    Inject(&'a Options),
    /// Take them out.
    Uninject,
}

/// A text that was changed, and what became of the pods in it.
#[derive(Clone, Debug, Default)]
pub struct Filtered {
    /// The whole text.
    pub text: String,
    /// `deployment/web`, or `service/web` of a compose file, and what was done, in the order of the text.
    pub pods: Vec<(String, &'static str)>,
}

/// Does the task for each document of a text.
///
/// # Errors
/// The first thing that is wrong, with line, column and document; nothing is changed then.
pub fn filter(file: &str, text: &str, task: Task<'_>) -> Result<Filtered, Problem> {
    let mut filtered = Filtered { text: String::with_capacity(text.len() * 2), ..Filtered::default() };
    let documents = documents(text);
    for (index, (line, document)) in documents.iter().enumerate() {
        let changed = one(document, task, &mut filtered.pods).map_err(|problem| {
            let message = if documents.len() > 1 {
                format!("document {}: {}", index + 1, problem.message)
            } else {
                problem.message.clone()
            };
            Problem { file: file.into(), line: problem.line + line - 1, message, ..problem }
        })?;
        filtered.text.push_str(changed.as_deref().unwrap_or(document));
    }
    Ok(filtered)
}

/// One document; `None`: as it was.
fn one(document: &str, task: Task<'_>, pods: &mut Vec<(String, &'static str)>) -> Result<Option<String>, Problem> {
    // What is only directives belongs to the next document.
    if document.lines().all(|line| line.trim().is_empty() || line.starts_with(['#', '%'])) {
        return Ok(None);
    }
    let Some(tree) = tree::parse(document)? else { return Ok(None) };
    let before = tree.value();
    let mut after = before.clone();
    let placed = |problem: Problem| {
        let (line, column) = tree.place(&problem.path);
        Problem { line, column, ..problem }
    };
    if compose::is_one(&before) {
        let mut told = |name, done| pods.push((name, done));
        let renamed = match task {
            Task::Inject(options) => compose::inject(&mut after, options, &mut told).map_err(placed)?,
            Task::Uninject => compose::uninject(&mut after, &mut told),
        };
        let mut tree = tree.clone();
        renamed.iter().for_each(|(path, from, to)| tree.rename(path, from, to));
        return Ok((after != before).then(|| written(document, &after, &tree)));
    }
    let mut change = |pod: &mut Value, name: &str, path: &str| {
        let before = pod.clone();
        let done = done(pod, &before, task).map_err(|problem| {
            let path = workload::join(path, &problem.path);
            Problem { path, ..problem }
        })?;
        pods.push((name.to_owned(), done));
        Ok(())
    };
    workload::each(&mut after, "", &mut change).map_err(placed)?;
    Ok((after != before).then(|| written(document, &after, &tree)))
}

fn done(pod_: &mut Value, before: &Value, task: Task<'_>) -> Result<&'static str, Problem> {
    Ok(match task {
        Task::Inject(options) => match pod(pod_, options)? {
            Done::OptedOut => "opted out",
            Done::Injected if pod_ == before => "unchanged",
            Done::Injected => "injected",
        },
        Task::Uninject => match undo(pod_)? {
            true => "uninjected",
            false => "unchanged",
        },
    })
}

/// The document with a new value: what stands before and after the object stays.
fn written(document: &str, value: &Value, tree: &Node) -> String {
    let trimmed = document.trim_start();
    if trimmed.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(document).is_ok() {
        let mut out = String::new();
        emit::json(value, Some(tree), 0, &mut out);
        out.push_str(&document[document.trim_end().len()..]);
        return out;
    }
    let own = |line: &str| line.trim().is_empty() || line.starts_with('#');
    // An indented comment at the end is nobody's, unless it is a line of a block of text.
    let indented = |line: &str| !tree.ends_with_block() && line.trim_start().starts_with('#');
    let mut out = String::new();
    let mut lines = document.split_inclusive('\n').peekable();
    if let Some(mark) = lines.next_if(|line| line.starts_with("---")) {
        // An object may begin on the line of the mark.
        out.push_str(if own(mark[3..].trim_start()) { mark } else { "---\n" });
    }
    // Comments before the first key are written with the key.
    while let Some(line) = lines.next_if(|line| line.trim().is_empty()) {
        out.push_str(line);
    }
    out.push_str(&emit::yaml(value, tree));
    let all: Vec<&str> = document.split_inclusive('\n').collect();
    let rest = all
        .iter()
        .rposition(|line| !own(line) && !indented(line) && !line.starts_with("..."))
        .map_or(0, |last| last + 1);
    out.push_str(&all[rest..].concat());
    out
}

/// The documents of a text with what separates them, and the line at which each starts. A line of `---` or `...` ends a
/// document wherever it stands: neither block scalars nor quoted text may contain one.
pub(super) fn documents(text: &str) -> Vec<(usize, &str)> {
    let (mut documents, mut start, mut first, mut offset) = (Vec::new(), 0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let mark = |mark: &str| {
            line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let end = offset + line.len();
        if mark("---") && offset > start {
            documents.push((first, &text[start..offset]));
            (start, first) = (offset, number);
        } else if mark("...") {
            documents.push((first, &text[start..end]));
            (start, first) = (end, number + 1);
        }
        offset = end;
    }
    if start < text.len() {
        documents.push((first, &text[start..]));
    }
    documents
}
