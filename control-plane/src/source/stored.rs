//! The objects of the store beside those of the files: one set of resources for the compiler. Objects that did not
//! change are not read again.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tokio::sync::watch;

use super::{LeftOut, Resources, instead, load, yaml};
use crate::{
    api::kinds,
    source::Problem,
    store::{Key, Revision, State, Stored},
};

/// What the objects of the store were read as.
#[derive(Default)]
struct Reader {
    read: BTreeMap<Key, Read>,
}

/// An object as it was read.
struct Read {
    revision: Revision,
    object: Arc<Value>,
    loaded: load::Loaded,
    stand_in: Option<instead::StandIn>,
}

/// The resources of the files and of the store, as of one event.
#[derive(Clone, Default)]
pub struct Current {
    /// The same while nothing but statuses changes.
    pub resources: Arc<Resources>,
    /// The last event of the store that they reflect.
    pub revision: Revision,
}

/// The resources of the files and of the store, now and after each change, for as long as the store is there.
#[must_use]
pub fn follow(
    mut files: watch::Receiver<Arc<Resources>>,
    mut objects: watch::Receiver<Arc<State>>,
) -> watch::Receiver<Current> {
    let mut reader = Reader::default();
    let first = Arc::clone(&objects.borrow_and_update());
    reader.read(&first);
    let resources = Arc::new(reader.merged(&files.borrow_and_update(), &first));
    let (sender, receiver) = watch::channel(Current { resources, revision: first.revision() });
    tokio::spawn(async move {
        let mut files_end = false;
        loop {
            let mut changed = false;
            tokio::select! {
                other = files.changed(), if !files_end => (files_end, changed) = (other.is_err(), other.is_ok()),
                other = objects.changed() => if other.is_err() { return },
                () = sender.closed() => return,
            }
            let objects = Arc::clone(&objects.borrow_and_update());
            changed |= reader.read(&objects);
            let merged = changed.then(|| Arc::new(reader.merged(&files.borrow_and_update(), &objects)));
            sender.send_modify(|current| {
                if let Some(merged) = merged {
                    current.resources = merged;
                }
                current.revision = objects.revision();
            });
        }
    });
    receiver
}

impl Reader {
    /// Reads what has changed; false if that is nothing but statuses, which nobody compiles.
    fn read(&mut self, objects: &State) -> bool {
        let before = self.read.len();
        self.read.retain(|key, _| objects.get(key).is_some());
        let mut changed = before != self.read.len();
        for stored in objects.iter() {
            let (revision, object) = (stored.revision, Arc::clone(&stored.object));
            match self.read.get_mut(&stored.key) {
                Some(read) if read.revision == revision => {}
                Some(read) if same_but_status(&read.object, &object) => {
                    (read.revision, read.object) = (revision, object)
                }
                _ => {
                    changed = true;
                    let (loaded, stand_in) = read(stored);
                    self.read.insert(stored.key.clone(), Read { revision, object, loaded, stand_in });
                }
            }
        }
        changed
    }

    /// The files' objects and those of the store, which were read before. Where both have one of the same name, the
    /// file's stays.
    fn merged(&self, files: &Resources, objects: &State) -> Resources {
        let mut resources = files.clone();
        let mut problems = Vec::new();
        for stored in objects.iter() {
            let Some(Read { loaded, stand_in, .. }) = self.read.get(&stored.key) else { continue };
            problems.extend(loaded.unknown.iter().chain(&loaded.wrong).cloned());
            let mut left_out = loaded.wrong.first().cloned();
            if let Some(stand_in) = stand_in.as_ref().filter(|_| !is_leaving(stored)) {
                let told = problems.len();
                stand_in.insert(&mut resources, &mut problems);
                if let Some((problem, told)) = left_out.as_mut().zip(problems.get(told)) {
                    problem.message = format!("{}; {}", problem.message, told.message);
                }
            }
            if let Some(object) = loaded.object.clone().filter(|_| !is_leaving(stored)) {
                let before = problems.len();
                object.insert(&mut resources, &mut problems);
                left_out = problems.get(before).cloned();
            }
            if let Some(problem) = left_out {
                let metadata = &stored.object["metadata"];
                let of = (metadata["uid"].as_str().map(str::to_owned), metadata["generation"].as_i64());
                resources.left_out.insert(stored.key.clone(), LeftOut { of, problem });
            }
        }
        resources.problems.extend(problems);
        resources
    }
}

/// Whether two versions of an object differ at most in their status.
pub(crate) fn same_but_status(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return old == new };
    let rest = |fields: &serde_json::Map<String, Value>| fields.keys().filter(|name| *name != "status").count();
    rest(old) == rest(new) && old.iter().all(|(name, value)| name == "status" || new.get(name) == Some(value))
}

/// Marked for deletion and only held by finalizers: the mesh acts as if it were gone.
fn is_leaving(stored: &Stored) -> bool {
    stored.object["metadata"]["deletionTimestamp"].is_string()
}

/// An object that another version wrote may not be valid here: then it is a problem, and one that could deny has a
/// stand-in.
fn read(stored: &Stored) -> (load::Loaded, Option<instead::StandIn>) {
    let (place, kind): (Arc<str>, _) = (stored.key.to_string().into(), &*stored.key.kind);
    if kinds::by_kind(kind).is_none() {
        let message = format!("unknown kind \"{kind}\": this version of Weft does not know it");
        let problem = Problem { file: place.to_string(), message, ..Problem::default() };
        return (load::Loaded { object: None, unknown: Vec::new(), wrong: vec![problem] }, None);
    }
    let node = yaml::Node::from(&*stored.object);
    let mut loaded = load::object(&place, &node);
    if instead::is_guard(kind) && loaded.unknown.iter().any(|problem| problem.path.starts_with("spec")) {
        loaded.object = None;
        loaded.wrong.append(&mut loaded.unknown);
    }
    let stand_in = if loaded.object.is_none() { instead::of(&place, &node) } else { None };
    (loaded, stand_in)
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
        assert_eq!(
            names(&resources.borrow_and_update().resources),
            ["shop/cart", "shop/web"],
            "at once, for the first compile"
        );

        put(&store, &web, Some(service("web", 9999))).await;
        resources.changed().await.expect("alive");
        {
            let now = Arc::clone(&resources.borrow_and_update().resources);
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
        assert_eq!(names(&resources.borrow_and_update().resources), ["shop/web"]);
    }

    #[tokio::test]
    async fn what_is_not_valid_any_more_or_leaving_is_left_out() {
        let store = Store::memory();
        put(&store, &Key::new("Service", "shop", "bad"), Some(service("bad", 0))).await;
        put(&store, &Key::new("Gadget", "shop", "x"), Some(json!({}))).await;
        let mut leaving = service("leaving", 80);
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        put(&store, &Key::new("Service", "shop", "leaving"), Some(leaving)).await;
        let (mut reader, state) = (Reader::default(), store.snapshot());
        assert!(reader.read(&state));
        let now = reader.merged(&Resources::default(), &state);
        assert!(now.services.is_empty());
        let problems: Vec<String> = now.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("Gadget shop/x: unknown kind"), "{problems:?}");
        assert!(problems[1].contains("0 is not a port"), "{problems:?}");
        let left_out: Vec<_> = now.left_out.keys().map(ToString::to_string).collect();
        assert_eq!(left_out, ["Gadget shop/x", "Service shop/bad"]);
    }

    fn policy(name: &str, spec: serde_json::Value) -> serde_json::Value {
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": name, "namespace": "shop", "uid": name, "generation": 3 }, "spec": spec,
        })
    }

    #[tokio::test]
    async fn a_stored_policy_that_is_not_valid_any_more_denies_unless_it_is_leaving_or_a_file_has_it() {
        let store = Store::memory();
        let key = |name: &str| Key::new("AuthorizationPolicy", "shop", name);
        let newer = json!({ "rules": [{ "from": [{ "namespaces": ["shop"], "devices": ["x"] }] }] });
        put(&store, &key("newer"), Some(policy("newer", newer))).await;
        put(&store, &key("bad"), Some(policy("bad", json!({ "action": "Deny" })))).await;
        put(&store, &key("of-a-file"), Some(policy("of-a-file", json!({ "action": "Deny" })))).await;
        let mut leaving = policy("leaving", json!({ "action": "Deny" }));
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        put(&store, &key("leaving"), Some(leaving)).await;
        let text = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: of-a-file, namespace: \
                    shop}\nspec: {rules: [{}]}\n";
        let (mut reader, state) = (Reader::default(), store.snapshot());
        reader.read(&state);
        let files = Resources::from_text("shop.yaml", text).0;
        let now = reader.merged(&files, &state);
        let names: Vec<_> = now.authorization_policies.keys().map(String::as_str).collect();
        assert_eq!(names, ["shop/bad", "shop/newer", "shop/of-a-file"]);
        for name in ["shop/bad", "shop/newer"] {
            let spec = &now.authorization_policies[name].value.spec;
            assert_eq!((spec.action, spec.rules.len()), (crate::source::policies::security::Action::Deny, 1), "{name}");
        }
        assert_eq!(now.authorization_policies["shop/of-a-file"].value.spec.action, Default::default());
        let why = &now.left_out[&key("newer")].problem.message;
        assert!(
            why.starts_with("unknown field; AuthorizationPolicy \"newer\" cannot be used: until it can, nobody"),
            "{why}"
        );
        let told = now.problems.iter().filter(|problem| problem.message.contains("nobody is let in")).count();
        assert_eq!(told, 2, "{:?}", now.problems);
        let again = reader.merged(&files, &state);
        let same = |id: &str| Arc::ptr_eq(&now.authorization_policies[id], &again.authorization_policies[id]);
        assert!(same("shop/bad"), "it is not made anew");
    }

    #[tokio::test]
    async fn a_status_is_no_change_of_the_resources() {
        let store = Store::memory();
        let key = Key::new("Service", "shop", "cart");
        put(&store, &key, Some(service("cart", 80))).await;
        let (_files, receiver) = watch::channel(Arc::new(Resources::default()));
        let mut resources = follow(receiver, store.state());
        let first = resources.borrow_and_update().clone();
        let mut with_status = service("cart", 80);
        with_status["status"] = json!({ "conditions": [] });
        put(&store, &key, Some(with_status.clone())).await;
        let waiting = resources.wait_for(|now| now.revision > first.revision);
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(20), waiting);
        let now = waiting.await.expect("in time").expect("alive").clone();
        assert!(Arc::ptr_eq(&first.resources, &now.resources), "only the revision is another");
        put(&store, &Key::new("Service", "shop", "other"), Some(service("other", 80))).await;
        let now = resources.wait_for(|now| now.resources.services.len() == 2).await.expect("alive").clone();
        let cart = |current: &Current| Arc::clone(&current.resources.services["shop/cart"]);
        assert!(Arc::ptr_eq(&cart(&first), &cart(&now)), "it was not read again");
        with_status["spec"]["ports"][0]["port"] = 81.into();
        put(&store, &key, Some(with_status)).await;
        resources.changed().await.expect("alive");
        assert!(!Arc::ptr_eq(&cart(&first), &cart(&resources.borrow())));
    }
}
