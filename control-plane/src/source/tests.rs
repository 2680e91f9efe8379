//! Problem texts with their places, and what happens to a directory whose files change.

use super::*;

fn problems(text: &str) -> Vec<String> {
    Resources::from_text("shop.yaml", text).1.iter().map(ToString::to_string).collect()
}

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: catalog\nspec:\n  ports:\n  - port: 80\n    name: http\n";

#[test]
fn an_unknown_field_is_reported_at_any_depth_with_a_suggestion() {
    let text = SERVICE.replace("    name: http", "    targetport: 8080\n    zzzzzzzzz: 1");
    assert_eq!(
        problems(&text),
        [
            "shop.yaml:8:5: spec.ports[0].targetport: unknown field (did you mean \"targetPort\"?)",
            "shop.yaml:9:5: spec.ports[0].zzzzzzzzz: unknown field (known here: appProtocol, name, nodePort, port, \
             protocol, targetPort)",
        ]
    );
    assert_eq!(
        problems(&SERVICE.replace("spec:", "specs: {}\nspec:")),
        ["shop.yaml:5:1: specs: unknown field (did you mean \"spec\"?)"]
    );
}

#[test]
fn an_unknown_field_of_a_route_is_reported_too() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  rules:\n  \
                - backendRefs:\n    - name: a\n      wieght: 3\n    matches:\n    - path: {type: Prefix, value: /a}\n";
    assert_eq!(
        problems(text),
        [
            "shop.yaml:8:7: spec.rules[0].backendRefs[0].wieght: unknown field (did you mean \"weight\"?)",
            "shop.yaml:10:20: spec.rules[0].matches[0].path.type: unknown value \"Prefix\", expected one of Exact, \
             PathPrefix, RegularExpression",
        ]
    );
}

#[test]
fn a_wrong_type_is_reported_with_its_value() {
    assert_eq!(
        problems(&SERVICE.replace("port: 80", "port: eighty")),
        ["shop.yaml:7:11: spec.ports[0].port: invalid type: string \"eighty\", expected i32"]
    );
    assert_eq!(
        problems(&SERVICE.replace("name: catalog", "name: catalog\n  labels:\n    version: 2")),
        [
            "shop.yaml:6:14: metadata.labels.version: invalid type: integer `2`, expected a string (put the value in quotes)"
        ]
    );
}

#[test]
fn values_out_of_range_are_reported() {
    assert_eq!(
        problems(&SERVICE.replace("port: 80", "port: 70000")),
        ["shop.yaml:7:11: spec.ports[0].port: 70000 is not a port (1 to 65535)"]
    );
    assert_eq!(
        problems(&SERVICE.replace("  - port: 80\n    name: http\n", "  - name: http\n")),
        ["shop.yaml:7:5: spec.ports[0].port: 0 is not a port (1 to 65535)"]
    );
    assert_eq!(
        problems(&SERVICE.replace("name: catalog", "name: Catalog_1")),
        ["shop.yaml:4:9: metadata.name: \"Catalog_1\" is not a name (lower-case letters, digits, \"-\" and \".\", at \
          most 253)"]
    );
}

#[test]
fn a_service_name_is_one_label() {
    assert_eq!(
        problems(&SERVICE.replace("name: catalog", "name: catalog.v1")),
        ["shop.yaml:4:9: metadata.name: \"catalog.v1\" is not a DNS label (at most 63 characters and no \".\")"]
    );
}

#[test]
fn an_unknown_kind_or_version_is_reported() {
    assert_eq!(
        problems(&SERVICE.replace("kind: Service", "kind: Servcie")),
        ["shop.yaml:2:7: kind: unknown kind \"Servcie\" of apiVersion \"v1\" (did you mean \"Service\"?)"]
    );
    assert_eq!(
        problems("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\n"),
        ["shop.yaml:1:13: apiVersion: unknown apiVersion \"gateway.networking.k8s.io/v1beta1\" of kind HTTPRoute \
          (use \"gateway.networking.k8s.io/v1\")"]
    );
}

#[test]
fn a_workload_is_strict_and_checked() {
    let text = "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: w}\nspec:\n  address: 10.0.0.1\n  \
                ports:\n  - port: 80\n    protocol: htpp\n";
    assert_eq!(
        problems(text),
        ["shop.yaml:8:15: spec.ports[0].protocol: unknown protocol \"htpp\" (did you mean \"http\"?)"]
    );
    assert_eq!(
        problems(&text.replace("htpp", "http").replace("address:", "adress:"))[0],
        "shop.yaml:5:3: spec.adress: unknown field (did you mean \"address\"?)"
    );
}

#[test]
fn the_first_of_two_objects_with_one_name_stays() {
    let (resources, problems) = Resources::from_text("shop.yaml", &format!("{SERVICE}---\n{SERVICE}"));
    assert_eq!(resources.services.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "shop.yaml:13:9: metadata.name: \"default/catalog\" is already defined at shop.yaml:4:9, which stays (remove \
         one of them)"
    );
}

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-source-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_bad_file_keeps_its_old_state_and_the_others_go_on() {
    let directory = Directory::new("bad");
    directory.write("a.yaml", SERVICE);
    directory.write("notes.txt", "not ours");
    let source = Source::open(&directory.0, "shop.test").unwrap();
    let mut resources = source.watch();
    assert_eq!(resources.borrow_and_update().trust_domain, "shop.test");
    directory.write("a.yaml", "kind: [");
    directory.write("b.yaml", &SERVICE.replace("catalog", "orders"));
    source.reload().unwrap();
    assert!(resources.has_changed().unwrap());
    let names: Vec<String> = resources.borrow_and_update().services.keys().cloned().collect();
    assert_eq!(names, ["default/catalog", "default/orders"]);
    assert_eq!(source.problems().len(), 1);
    std::fs::remove_file(directory.0.join("a.yaml")).unwrap();
    source.reload().unwrap();
    let names: Vec<String> = resources.borrow_and_update().services.keys().cloned().collect();
    assert_eq!(names, ["default/orders"]);
    assert!(source.problems().is_empty());
    source.reload().unwrap();
    assert!(!resources.has_changed().unwrap(), "nothing changed");
}

#[test]
fn at_the_first_start_a_bad_policy_denies_until_it_is_good_and_later_ones_are_problems() {
    let policy = |action: &str, name: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{action: {action}, rules: [{{from: [{{namespaces: [evil]}}]}}]}}\n"
        )
    };
    let directory = Directory::new("first");
    directory.write("a.yaml", &format!("{SERVICE}---\n{}", policy("Dney", "p")));
    directory.write("b.yaml", &policy("Deny", "q"));
    directory.write("c.yaml", &policy("Dney", "q"));
    let source = Source::open(&directory.0, "weft.local").unwrap();
    let resources = source.watch();
    let everyone = |name: &str| {
        let resources = resources.borrow();
        resources.authorization_policies.get(name).map(|policy| policy.value.spec.rules[0].from.is_none())
    };
    assert_eq!((everyone("shop/p"), everyone("shop/q")), (Some(true), Some(false)), "that of another file is good");
    assert!(source.problems().iter().any(|problem| problem.message.contains("nobody is let in")));
    directory.write("a.yaml", &policy("Dneyy", "p"));
    directory.write("late.yaml", &policy("Dney", "late"));
    source.reload().unwrap();
    assert_eq!((everyone("shop/p"), everyone("shop/late")), (Some(true), None));
    directory.write("a.yaml", &policy("Deny", "p"));
    source.reload().unwrap();
    assert_eq!(everyone("shop/p"), Some(false));
    std::fs::remove_file(directory.0.join("c.yaml")).unwrap();
    directory.write("late.yaml", "");
    source.reload().unwrap();
    assert_eq!(source.problems(), []);
}

#[test]
fn a_directory_that_is_not_there_says_so() {
    let error = Source::open(Path::new("/nonexistent/shop"), "weft.local").err().unwrap().to_string();
    assert_eq!(
        error,
        "read resources: /nonexistent/shop: No such file or directory (os error 2) (--resources takes a directory \
         with .yaml files)"
    );
}

/// Waits for the watcher until the resources are as wanted.
async fn until(receiver: &mut tokio::sync::watch::Receiver<Arc<Resources>>, wanted: &str) {
    let wait = receiver.wait_for(|resources| resources.services.contains_key(wanted));
    tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_atomic_rename_and_a_symlink_swap_are_seen() {
    let directory = Directory::new("watch");
    let at = |name: &str| directory.0.join(name);
    for (name, service) in [("one", "first"), ("two", "second")] {
        std::fs::create_dir(at(name)).unwrap();
        directory.write(&format!("{name}/a.yaml"), &SERVICE.replace("catalog", service));
    }
    std::os::unix::fs::symlink("one", at("now")).unwrap();
    let source = Arc::new(Source::open(&at("now"), "weft.local").unwrap());
    let mut resources = source.watch();
    let task = tokio::spawn(Arc::clone(&source).run());
    until(&mut resources, "default/first").await;
    directory.write("new.tmp", &SERVICE.replace("catalog", "renamed"));
    std::fs::rename(at("new.tmp"), at("one/a.yaml")).unwrap();
    until(&mut resources, "default/renamed").await;
    std::os::unix::fs::symlink("two", at("next")).unwrap();
    std::fs::rename(at("next"), at("now")).unwrap();
    until(&mut resources, "default/second").await;
    directory.write("two/b.yaml", SERVICE);
    until(&mut resources, "default/catalog").await;
    task.abort();
}

#[test]
fn a_fault_of_a_file_begins_when_the_file_was_written() {
    let fault = |created: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: FaultInjection\nmetadata: {{name: f{created}}}\n\
             spec: {{targetRefs: [{{kind: Service, name: a}}], abort: {{reset: true}}, expiresAfter: 1m}}\n"
        )
    };
    let directory = Directory::new("fault");
    directory.write("a.yaml", &fault(""));
    directory.write("b.yaml", &fault(", namespace: b, creationTimestamp: '2026-01-01T00:00:00Z'"));
    let written = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    for name in ["a.yaml", "b.yaml"] {
        std::fs::File::options().write(true).open(directory.0.join(name)).unwrap().set_modified(written).unwrap();
    }
    let source = Source::open(&directory.0, "weft.local").unwrap();
    let resources = source.watch().borrow().clone();
    let began =
        |id: &str| resources.fault_injections[id].value.metadata.creation_timestamp.clone().unwrap().0.as_second();
    assert_eq!(began("default/f"), 1_800_000_000);
    assert_eq!(began("b/f"), 1_767_225_600, "what it says itself counts");
}
