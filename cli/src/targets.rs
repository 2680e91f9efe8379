//! Which objects a command is about: `KIND NAME...` or `KIND/NAME...`, in which namespace, with which labels.

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::Value;
use weft_control_plane::source::did_you_mean;

use crate::{
    kinds::{Kind, Kinds},
    server::{CallError, Server, with_query},
};

/// Where objects are looked for.
#[derive(Args, Clone, Debug)]
pub struct ScopeArgs {
    /// Namespace of the objects [default: default]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Objects of all namespaces
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only objects with these labels, such as app=web,tier!=back
    #[arg(long, short = 'l', value_name = "LABELS")]
    pub selector: Option<String>,
}

impl ScopeArgs {
    /// The namespace, none for all.
    pub fn namespace(&self) -> Option<&str> {
        if self.all_namespaces { None } else { Some(self.namespace.as_deref().unwrap_or("default")) }
    }
}

/// A kind, and a name or all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// None: all of them.
    pub name: Option<String>,
}

/// The targets that words mean: `KIND[,KIND]`, `KIND NAME...` or `KIND/NAME...`.
pub fn parse(kinds: &Kinds, words: &[String]) -> anyhow::Result<Vec<Target>> {
    let (first, names) = words.split_first().context("no kind is given")?;
    if words.iter().any(|word| word.contains('/')) {
        let one = |word: &String| {
            let parts = word.split_once('/').filter(|(kind, name)| !kind.is_empty() && !name.is_empty());
            let (kind, name) = parts.with_context(|| format!("{word:?}: not KIND/NAME, as the others are"))?;
            Ok(Target { kind: kinds.named(kind)?.clone(), name: Some(name.to_owned()) })
        };
        return words.iter().map(one).collect();
    }
    let kinds = kinds.several(first)?;
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|kind| Target { kind: kind.clone(), name: None }).collect());
    }
    let [kind] = kinds.as_slice() else { bail!("{first}: names can be given for one kind only; use KIND/NAME") };
    Ok(names.iter().map(|name| Target { kind: (*kind).clone(), name: Some(name.clone()) }).collect())
}

/// The one object that words mean.
pub fn one(kinds: &Kinds, words: &[String]) -> anyhow::Result<(Kind, String)> {
    let mut targets = parse(kinds, words)?;
    ensure!(targets.len() == 1, "{}: this is for one object: KIND NAME or KIND/NAME", words.join(" "));
    let Target { kind, name } = targets.remove(0);
    let name = name.with_context(|| format!("{}: the name is missing: {} NAME", words.join(" "), kind.singular))?;
    Ok((kind, name))
}

/// The objects of a kind.
pub async fn list(server: &Server, kind: &Kind, scope: &ScopeArgs) -> Result<Vec<Value>, CallError> {
    let path = with_query(&kind.path(scope.namespace(), None), &[("labelSelector", scope.selector.as_deref())]);
    let mut list = server.get(&path).await?;
    let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(items.into_iter().map(|item| typed(kind, item)).collect())
}

/// Items of lists have no kind in Kubernetes.
fn typed(kind: &Kind, mut item: Value) -> Value {
    if let Some(fields) = item.as_object_mut().filter(|fields| !fields.contains_key("kind")) {
        let group = if kind.group.is_empty() { String::new() } else { format!("{}/", kind.group) };
        fields.insert("apiVersion".into(), format!("{group}{}", kind.version).into());
        fields.insert("kind".into(), kind.kind.clone().into());
    }
    item
}

/// One object.
pub async fn object(server: &Server, kind: &Kind, namespace: &str, name: &str) -> anyhow::Result<Value> {
    match server.get(&kind.path(Some(namespace), Some(name))).await {
        Ok(object) => Ok(object),
        Err(error) => Err(explained(server, kind, namespace, name, error).await),
    }
}

/// The error of one object's call. When there is no such object, with what was probably meant.
pub async fn explained(server: &Server, kind: &Kind, namespace: &str, name: &str, error: CallError) -> anyhow::Error {
    if error.code() != Some(404) {
        return error.into();
    }
    let everywhere = ScopeArgs { namespace: None, all_namespaces: true, selector: None };
    let others = list(server, kind, &everywhere).await.unwrap_or_default();
    anyhow::anyhow!(missing(kind, namespace, name, &others))
}

fn missing(kind: &Kind, namespace: &str, name: &str, others: &[Value]) -> String {
    let text = |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let here = others.iter().filter(|object| !kind.namespaced || text(object, "namespace") == namespace);
    let here: Vec<String> = here.map(|object| text(object, "name")).collect();
    let place = if kind.namespaced { format!(" in namespace {namespace:?}") } else { String::new() };
    let elsewhere: Vec<String> =
        others.iter().filter(|object| text(object, "name") == name).map(|object| text(object, "namespace")).collect();
    let near = did_you_mean(name, here.iter().map(String::as_str));
    let hint = match (elsewhere.as_slice(), near.as_str()) {
        ([], "") if here.is_empty() => format!("there is no {}{place}", kind.singular),
        ([], "") => format!("weft get {} lists what is there", kind.plural),
        ([], near) => near.to_owned(),
        (elsewhere, _) => format!("there is one in namespace {}: use -n", elsewhere.join(", ")),
    };
    format!("{}: not found{place}; {hint}", kind.shown(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::example;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn objects_are_named_in_three_ways() {
        let kinds = example();
        let shown = |line: &str| {
            let targets = parse(&kinds, &words(line)).unwrap();
            targets.iter().map(|target| target.kind.shown(target.name.as_deref().unwrap_or("*"))).collect::<Vec<_>>()
        };
        assert_eq!(shown("svc,ns"), ["service/*", "namespace/*"]);
        assert_eq!(shown("svc a b"), ["service/a", "service/b"]);
        assert_eq!(shown("svc/a ns/b"), ["service/a", "namespace/b"]);
        for line in ["", "svc,ns a", "svc/a b", "svc/", "/a", "nope"] {
            assert!(parse(&kinds, &words(line)).is_err(), "{line}");
        }
        for line in ["svc", "svc a b", "svc/a ns/b"] {
            assert!(one(&kinds, &words(line)).is_err(), "{line}");
        }
        assert_eq!(one(&kinds, &words("svc/a")).unwrap().1, "a");
    }

    #[test]
    fn a_missing_object_is_looked_for_nearby() {
        let kinds = example();
        let kind = kinds.named("svc").unwrap();
        let object = |namespace: &str, name: &str| json!({"metadata": {"name": name, "namespace": namespace}});
        let others = [object("default", "catalog"), object("shop", "orders")];
        let text = |name| missing(kind, "default", name, &others);
        assert_eq!(text("catalgo"), "service/catalgo: not found in namespace \"default\"; did you mean \"catalog\"?");
        assert!(text("orders").ends_with("there is one in namespace shop: use -n"));
        assert!(text("banana").ends_with("weft get services lists what is there"));
        assert!(missing(kind, "empty", "a", &others).ends_with("there is no service in namespace \"empty\""));
    }
}
