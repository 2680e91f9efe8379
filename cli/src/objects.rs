//! Objects in files, directories and standard input: read, checked, in the order in which they are applied.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use weft_control_plane::source::{Problem, Resources};

use crate::{
    kinds::{Kind, Kinds},
    problems::{self, Severity},
    style,
};

/// Largest input, so that a wrong path does not fill the memory.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A file's name and text.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name for messages.
    pub file: String,
    /// All of it.
    pub text: String,
}

/// An object of a file, and what the server calls it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Where it was written.
    pub file: String,
    /// Its kind.
    pub kind: Kind,
    /// Empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// As written, with the namespace filled in.
    pub object: Value,
}

impl Manifest {
    /// `service/catalog`.
    pub fn shown(&self) -> String {
        self.kind.shown(&self.name)
    }

    /// `Service shop/catalog`; a kind without namespaces has the name alone.
    pub fn title(&self) -> String {
        let namespace = if self.kind.namespaced { format!("{}/", self.namespace) } else { String::new() };
        format!("{} {namespace}{}", self.kind.kind, self.name)
    }

    /// Its path at the server.
    pub fn path(&self) -> String {
        self.kind.path(Some(&self.namespace), Some(&self.name))
    }

    /// The path of the collection that it is in.
    pub fn collection(&self) -> String {
        self.kind.path(Some(&self.namespace), None)
    }
}

/// The texts of files, of the YAML and JSON files of directories (sorted, not those below), and of `-`.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes).context("read standard input")?;
            sources.push(Source { file: "(standard input)".to_owned(), text: utf8("standard input", bytes)? });
        } else if path.is_dir() {
            let files = list(path)?;
            ensure!(!files.is_empty(), "{}: the directory has no .yaml, .yml or .json file", path.display());
            for file in files {
                sources.push(open(&file)?);
            }
        } else {
            sources.push(open(path)?);
        }
    }
    Ok(sources)
}

fn list(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("{}: cannot be read", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("{}: cannot be read", directory.display()))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if matches!(extension, "json" | "yaml" | "yml") && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn open(path: &Path) -> anyhow::Result<Source> {
    let file = path.display().to_string();
    let size = std::fs::metadata(path).with_context(|| format!("{file}: cannot be read"))?.len();
    ensure!(size <= MAX_BYTES, "{file}: {size} bytes are too many: at most {MAX_BYTES} are taken");
    let bytes = std::fs::read(path).with_context(|| format!("{file}: cannot be read"))?;
    Ok(Source { text: utf8(&file, bytes)?, file })
}

fn utf8(file: &str, bytes: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        anyhow::anyhow!("{file}: not UTF-8: byte {}; is it a YAML or JSON file?", error.utf8_error().valid_up_to())
    })
}

/// The objects of a text, read as the control plane reads files; those of a `List` one by one.
pub fn parse(source: &Source) -> Result<Vec<Value>, Problem> {
    let mut objects = Vec::new();
    for (line, document) in documents(&source.text) {
        let body = weft_control_plane::api::body::yaml(document.as_bytes()).map_err(|error| {
            let message = error.to_json()["message"].as_str().unwrap_or("not valid YAML").to_owned();
            Problem { file: source.file.clone(), line, column: 1, message, ..Problem::default() }
        })?;
        match body.value {
            Value::Null => {}
            Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                if let Some(Value::Array(items)) = list.remove("items") {
                    objects.extend(items);
                }
            }
            object => objects.push(object),
        }
    }
    Ok(objects)
}

/// The documents of a YAML text, each with the line that it starts at. A line of `---` or `...` ends a document
/// wherever it stands: neither block scalars nor quoted text may contain one.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(1, String::new())];
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let rest = ["---", "..."].iter().find_map(|mark| line.strip_prefix(mark));
        let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if rest.is_some() {
            documents.push((number, String::new()));
        }
        if let Some((_, document)) = documents.last_mut() {
            // Columns stay as they are in the file.
            document.push_str(&rest.map_or_else(|| line.to_owned(), |rest| format!("   {rest}")));
        }
    }
    documents.retain(|(_, document)| !document.trim().is_empty());
    documents
}

/// What is wrong with a text by itself. Kinds that are not Weft's own are the server's business.
pub fn problems(source: &Source) -> Vec<Problem> {
    let (_, mut problems) = Resources::from_text(&source.file, &source.text);
    problems.retain(|problem| !matches!(problem.path.as_str(), "apiVersion" | "kind"));
    problems
}

/// The objects of all texts in the order in which they are applied: namespaces, then services, then the rest.
/// Problems are printed, and are an error in the end.
pub fn load(sources: &[Source], kinds: &Kinds, namespace: Option<&str>) -> anyhow::Result<Vec<Manifest>> {
    let (mut manifests, mut failed) = (Vec::new(), 0);
    for source in sources {
        let mut problems = problems(source);
        match parse(source) {
            Err(problem) if problems.is_empty() => problems.push(problem),
            Err(_) => {}
            Ok(objects) => {
                for object in objects {
                    match manifest(source, object, kinds, namespace) {
                        Ok(manifest) => manifests.push(manifest),
                        Err(error) => problems.push(unplaced(source, &error)),
                    }
                }
            }
        }
        failed += problems.len();
        for problem in &problems {
            anstream::eprint!("{}", problems::render(problem, Severity::Error, Some(&source.text)));
        }
    }
    match failed {
        0 if manifests.is_empty() => bail!("no object in {}", names(sources)),
        0 => {}
        1 => bail!("1 problem in {}; nothing was sent", names(sources)),
        count => bail!("{count} problems in {}; nothing was sent", names(sources)),
    }
    manifests.sort_by_key(|manifest| match manifest.kind.kind.as_str() {
        "Namespace" => 0,
        "Service" => 1,
        _ => 2,
    });
    Ok(manifests)
}

fn names(sources: &[Source]) -> String {
    match sources {
        [one] => one.file.clone(),
        several => format!("{} files", several.len()),
    }
}

/// The problem of an object whose kind the server does not know is placed by the loader, where it can.
fn unplaced(source: &Source, error: &anyhow::Error) -> Problem {
    let (_, placed) = Resources::from_text(&source.file, &source.text);
    let place = placed.iter().find(|problem| matches!(problem.path.as_str(), "apiVersion" | "kind"));
    let (line, column) = place.map_or((0, 0), |problem| (problem.line, problem.column));
    let hint = place.map(|problem| problem.hint.clone()).unwrap_or_default();
    Problem { file: source.file.clone(), line, column, message: format!("{error:#}"), hint, ..Problem::default() }
}

fn manifest(source: &Source, mut object: Value, kinds: &Kinds, wanted: Option<&str>) -> anyhow::Result<Manifest> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (version, kind) = match (text("/apiVersion"), text("/kind")) {
        (Some(version), Some(kind)) => (version, kind),
        _ => bail!("an object without apiVersion or kind"),
    };
    let Some(kind) = kinds.of(version, kind) else {
        bail!("the server has no kind {kind:?} of apiVersion {version:?}");
    };
    let shown = format!("{} {:?}", kind.kind, text("/metadata/name").unwrap_or_default());
    let name = text("/metadata/name").with_context(|| format!("{}: metadata.name is missing", kind.kind))?.to_owned();
    let own = text("/metadata/namespace").map(str::to_owned);
    let namespace = match (kind.namespaced, own, wanted) {
        (false, _, _) => String::new(),
        (true, Some(own), Some(wanted)) if own != wanted => {
            bail!("{shown}: metadata.namespace is {own:?}, not the {wanted:?} of --namespace")
        }
        (true, Some(own), _) => own,
        (true, None, wanted) => wanted.unwrap_or("default").to_owned(),
    };
    if kind.namespaced {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    Ok(Manifest { file: source.file.clone(), kind: kind.clone(), namespace, name, object })
}

/// The object without what only the server writes, as it would be in a file.
pub fn as_written(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid"] {
            metadata.remove(field);
        }
        let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
        if annotations.is_some_and(|annotations| {
            annotations.remove(crate::merge::LAST_APPLIED);
            annotations.is_empty()
        }) {
            metadata.remove("annotations");
        }
    }
    object
}

/// Prints a result in green, such as `service/catalog created`.
pub fn print_done(what: &str, done: &str) {
    anstream::println!("{what} {}", style::paint(style::GOOD, done));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::example;

    fn source(text: &str) -> Source {
        Source { file: "a.yaml".into(), text: text.into() }
    }

    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {}\n";
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n";
    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n";

    #[test]
    fn namespaces_come_first_then_services() {
        let text = format!("{ROUTE}---\n{SERVICE}---\n---\n{NAMESPACE}");
        let manifests = load(&[source(&text)], &example(), None).unwrap();
        let shown: Vec<_> = manifests.iter().map(Manifest::shown).collect();
        assert_eq!(shown, ["namespace/n", "service/s", "httproute.gateway.networking.k8s.io/r"]);
        assert_eq!(manifests[1].object["metadata"]["namespace"], "default");
        assert_eq!(manifests[0].object["metadata"]["namespace"], Value::Null);
    }

    #[test]
    fn json_and_lists_are_taken() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}]});
        let manifests = load(&[source(&format!("{list:#}"))], &example(), Some("shop")).unwrap();
        assert_eq!(manifests[0].name, "n");
    }

    #[test]
    fn a_namespace_that_contradicts_the_flag_is_refused() {
        let text = SERVICE.replace("name: s", "name: s, namespace: shop");
        assert_eq!(load(&[source(&text)], &example(), Some("shop")).unwrap()[0].namespace, "shop");
        assert!(load(&[source(&text)], &example(), Some("other")).is_err());
    }

    #[test]
    fn what_is_wrong_is_counted_and_nothing_is_loaded() {
        let bad = SERVICE.replace("port:", "prot:");
        let error = load(&[source(&bad)], &example(), None).unwrap_err().to_string();
        assert!(error.contains("in a.yaml; nothing was sent"), "{error}");
        for text in ["a: [1\n", "kind: Service\n", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n", "[]", ""] {
            assert!(load(&[source(text)], &example(), None).is_err(), "{text}");
        }
    }

    #[test]
    fn scalars_are_read_as_the_control_plane_reads_them() {
        let text = "a: {n: yes, on: no, o: 017, u: 1_000, b: true, z: ~}\n";
        let objects = parse(&source(text)).unwrap();
        assert_eq!(objects, [json!({"a": {"n": "yes", "on": "no", "o": 17, "u": "1_000", "b": true, "z": null}})]);
    }

    #[test]
    fn documents_are_told_apart_wherever_they_end() {
        let text = "# first\na: |\n  ---\n  x\n--- {b: 1}\n---\n\n---   # none\nc: ---x\n...\n--- \nd: 1";
        let expected = [json!({"a": "---\nx\n"}), json!({"b": 1}), json!({"c": "---x"}), json!({"d": 1})];
        assert_eq!(parse(&source(text)).unwrap(), expected);
    }

    #[test]
    fn an_invalid_text_has_its_place() {
        let problem = parse(&source("a: 1\n---\nb: [1\n")).unwrap_err();
        assert_eq!(problem.line, 2, "{problem:?}");
        let placed = problems(&source("a: 1\n---\nb: [1\n"));
        assert!(placed[0].line >= 3, "{placed:?}");
    }

    #[test]
    fn a_directory_gives_its_yaml_and_json_files_in_order() {
        let directory = std::env::temp_dir().join(format!("weft-objects-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for name in ["b.yml", "a.json", "c.yaml", "d.txt", ".e.yaml"] {
            std::fs::write(directory.join(name), name).unwrap();
        }
        let texts: Vec<_> = read(std::slice::from_ref(&directory)).unwrap().into_iter().map(|s| s.text).collect();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(texts, ["a.json", "b.yml", "c.yaml"]);
        assert!(read(&[directory]).is_err());
    }

    #[test]
    fn what_the_server_writes_is_not_part_of_a_file() {
        let object = json!({"kind": "Service", "status": {}, "spec": {"a": 1}, "metadata": {"name": "s", "uid": "1",
            "annotations": {crate::merge::LAST_APPLIED: "{}"}, "resourceVersion": "7"}});
        assert_eq!(as_written(&object), json!({"kind": "Service", "spec": {"a": 1}, "metadata": {"name": "s"}}));
    }
}
