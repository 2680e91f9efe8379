//! The objects of the store beside those of the files: one set of resources for the compiler. Objects that did not
//! change are not read again.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::{Resources, load, yaml};
use crate::{
    api::kinds,
    source::Problem,
    store::{Key, Revision, State, Stored},
};

/// What the objects of the store were read as, at their revisions.
#[derive(Default)]
struct Reader {
    read: BTreeMap<Key, (Revision, load::Loaded)>,
}

/// The resources of the files and of the store, now and after each change, for as long as the store is there.
#[must_use]
pub fn follow(
    mut files: watch::Receiver<Arc<Resources>>,
    mut objects: watch::Receiver<Arc<State>>,
) -> watch::Receiver<Arc<Resources>> {
    let mut reader = Reader::default();
    let first = reader.merged(&files.borrow_and_update(), &objects.borrow_and_update());
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        let mut files_end = false;
        loop {
            tokio::select! {
                changed = files.changed(), if !files_end => files_end = changed.is_err(),
                changed = objects.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let merged = reader.merged(&files.borrow_and_update(), &objects.borrow_and_update());
            sender.send_replace(Arc::new(merged));
        }
    });
    receiver
}

impl Reader {
    /// The files' objects and those of the store. Where both have one of the same name, the file's stays.
    fn merged(&mut self, files: &Resources, objects: &State) -> Resources {
        self.read.retain(|key, (revision, _)| objects.get(key).is_some_and(|stored| stored.revision == *revision));
        let mut resources = Resources { revision: objects.revision(), ..files.clone() };
        let mut problems = Vec::new();
        for stored in objects.iter() {
            let (_, loaded) = self.read.entry(stored.key.clone()).or_insert_with(|| (stored.revision, read(stored)));
            problems.extend(loaded.unknown.iter().chain(&loaded.wrong).cloned());
            if let Some(object) = loaded.object.clone().filter(|_| !is_leaving(stored)) {
                object.insert(&mut resources, &mut problems);
            }
        }
        resources.problems.extend(problems);
        resources
    }
}

/// Marked for deletion and only held by finalizers: the mesh acts as if it were gone.
fn is_leaving(stored: &Stored) -> bool {
    stored.object["metadata"]["deletionTimestamp"].is_string()
}

/// An object that an older version wrote may not be valid any more: then it is a problem and nothing else.
fn read(stored: &Stored) -> load::Loaded {
    let place: Arc<str> = stored.key.to_string().into();
    if kinds::by_kind(&stored.key.kind).is_none() {
        let message = format!("unknown kind \"{}\": this version of Weft does not know it", stored.key.kind);
        let problem = Problem { file: place.to_string(), message, ..Problem::default() };
        return load::Loaded { object: None, unknown: Vec::new(), wrong: vec![problem] };
    }
    load::object(&place, &yaml::Node::from(&*stored.object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{Batch, Expect, Store, Write};

    async fn put(store: &Store, key: &Key, object: Option<serde_json::Value>) {
        let write = Write { key: key.clone(), expect: Expect::Any, object };
        let batch = Batch { author: "test".into(), reason: String::new(), writes: vec![write] };
        store.append(batch).await.expect("taken");
    }

    fn service(name: &str, port: u16) -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
            "spec": { "ports": [{ "port": port }] },
        })
    }

    #[tokio::test]
    async fn objects_of_the_store_join_those_of_the_files_and_go_again() {
        let text =
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
        let (files, problems) = Resources::from_text("shop.yaml", text);
        assert!(problems.is_empty());
        let store = Store::memory();
        let (cart, web) = (Key::new("Service", "shop", "cart"), Key::new("Service", "shop", "web"));
        put(&store, &cart, Some(service("cart", 81))).await;
        let (_files, receiver) = watch::channel(Arc::new(files));
        let mut resources = follow(receiver, store.state());
        let names = |resources: &Resources| resources.services.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&resources.borrow_and_update()), ["shop/cart", "shop/web"], "at once, for the first compile");

        put(&store, &web, Some(service("web", 9999))).await;
        resources.changed().await.expect("alive");
        {
            let now = resources.borrow_and_update();
            let ports = now.services["shop/web"].value.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            assert_eq!(ports.map(|ports| ports[0].port), Some(80), "the file's stays");
            assert_eq!(now.problems.len(), 1);
            let text = now.problems[0].to_string();
            assert!(
                text.starts_with("Service shop/web: metadata.name: \"shop/web\" is already defined at shop.yaml:"),
                "{text}"
            );
        }
        put(&store, &cart, None).await;
        resources.changed().await.expect("alive");
        assert_eq!(names(&resources.borrow_and_update()), ["shop/web"]);
    }

    #[tokio::test]
    async fn what_is_not_valid_any_more_or_leaving_is_left_out() {
        let store = Store::memory();
        put(&store, &Key::new("Service", "shop", "bad"), Some(service("bad", 0))).await;
        put(&store, &Key::new("Gadget", "shop", "x"), Some(json!({}))).await;
        let mut leaving = service("leaving", 80);
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        put(&store, &Key::new("Service", "shop", "leaving"), Some(leaving)).await;
        let now = Reader::default().merged(&Resources::default(), &store.snapshot());
        assert!(now.services.is_empty());
        let problems: Vec<String> = now.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("Gadget shop/x: unknown kind"), "{problems:?}");
        assert!(problems[1].contains("0 is not a port"), "{problems:?}");
    }
}
