//! Injection into the manifests of `control-plane/tests/inject`, beside what is expected. `WEFT_BLESS=1` writes what came
//! out; read the difference before it is committed.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    Options,
    text::{Filtered, Task, filter},
    tree,
};
use crate::source::Problem;

fn corpus() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| !file.to_string_lossy().contains(".injected."));
    files.sort();
    assert!(files.len() >= 7, "{files:?}");
    files
}

fn options() -> Options {
    Options { image: "weft:test".into(), redirect_image: "weft-redirect:test".into(), ..Options::of("weft-system") }
}

fn inject(text: &str) -> Result<Filtered, Problem> {
    filter("f.yaml", text, Task::Inject(&options()))
}

fn injected(text: &str) -> String {
    inject(text).unwrap().text
}

fn uninjected(text: &str) -> String {
    filter("f.yaml", text, Task::Uninject).unwrap().text
}

fn error(text: &str) -> String {
    inject(text).unwrap_err().to_string()
}

/// The documents as trees, by a parser that knows nothing of how they are written.
fn values(text: &str) -> Vec<Value> {
    crate::source::yaml_to_json(text).unwrap()
}

#[test]
fn every_manifest_of_the_corpus_becomes_what_is_expected() {
    for file in corpus() {
        let text = std::fs::read_to_string(&file).unwrap();
        let (stem, extension) = (file.file_stem().unwrap().to_string_lossy(), file.extension().unwrap());
        let golden = file.with_file_name(format!("{stem}.injected.{}", extension.to_string_lossy()));
        let out = injected(&text).replace(env!("CARGO_PKG_VERSION"), "VERSION");
        if std::env::var_os("WEFT_BLESS").is_some() {
            std::fs::write(&golden, &out).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        similar(&golden, &expected, &out);
    }
}

/// Equal, or the first line that is not.
fn similar(file: &Path, expected: &str, found: &str) {
    if expected == found {
        return;
    }
    let differs = (1..).zip(expected.lines().zip(found.lines())).find(|(_, (expected, found))| expected != found);
    panic!("{}: {differs:?}\n{found}", file.display());
}

#[test]
fn injecting_twice_changes_nothing_the_second_time() {
    for file in corpus() {
        let once = injected(&std::fs::read_to_string(&file).unwrap());
        let twice = inject(&once).unwrap();
        similar(&file, &once, &twice.text);
        assert!(twice.pods.iter().all(|(_, done)| ["unchanged", "opted out"].contains(done)), "{:?}", twice.pods);
    }
}

#[test]
fn uninjecting_gives_back_what_was_there() {
    for file in corpus() {
        let text = std::fs::read_to_string(&file).unwrap();
        let back = uninjected(&injected(&text));
        let (mut before, mut after) = (values_of(&text), values_of(&back));
        // Merged keys are written out.
        for value in before.iter_mut().chain(&mut after) {
            sorted(value);
        }
        assert_eq!(before, after, "{}", file.display());
    }
}

/// The documents by the tree of this module, which knows merge keys.
fn values_of(text: &str) -> Vec<Value> {
    let documents = super::text::documents(text);
    let documents = documents.iter().filter(|(_, document)| !document.starts_with('%'));
    documents.filter_map(|(_, document)| tree::parse(document).unwrap()).map(|node| node.value()).collect()
}

fn sorted(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(sorted);
    }
}

#[test]
fn what_is_written_in_block_style_comes_back_to_the_letter() {
    for name in ["compose.yaml", "deployment.yaml", "kinds.yaml", "annotations.yaml", "probes.yaml", "list.yaml"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject").join(name);
        let text = std::fs::read_to_string(&file).unwrap();
        similar(&file, &text, &uninjected(&injected(&text)));
    }
}

#[test]
fn comments_stay_where_they_were() {
    let script = "    - |-\n      # not a remark\n      true\n";
    for end in ["    # the last of the container\n\n    # and of all\n", "# at the margin\n", script, ""] {
        let command = if end == script { "    command:\n" } else { "" };
        let text =
            format!("{POD}    env: # none\n    - name: A # first\n      # its value\n      value: b\n{command}{end}");
        let with = injected(&text);
        assert!(with.contains(end.trim()), "{with}");
        similar(Path::new(end), &text, &uninjected(&with));
        assert_eq!(values(&with), values_of(&with));
    }
}

#[test]
fn a_pod_whose_app_is_of_the_sidecars_user_is_refused_unless_nothing_is_redirected() {
    let of = |fields: &str| POD.replace("spec:\n", &format!("spec:\n{fields}"));
    let told = error(&of("  securityContext: {runAsUser: 15000}\n"));
    assert!(told.contains("f.yaml:6:32") && told.contains("the app would pass the mesh"), "{told}");
    let told = error(&format!("{POD}    securityContext:\n      runAsUser: 15000\n"));
    assert!(told.contains("spec.containers[0].securityContext.runAsUser"), "{told}");
    let direct = POD.replace("name: p\n", "name: p\n  annotations: {weft.dev/redirect: disabled}\n");
    assert!(inject(&format!("{direct}    securityContext:\n      runAsUser: 15000\n")).is_ok());
}

#[test]
fn ports_of_the_annotation_are_checked_against_the_sidecars_own_and_each_other() {
    let of = |ports: &str| {
        error(&POD.replace("name: p\n", &format!("name: p\n  annotations: {{weft.dev/ports: \"{ports}\"}}\n")))
    };
    assert!(of("80,15008").contains("port 15008 is the sidecar's"), "{}", of("80,15008"));
    assert!(of("80,web:80/http").contains("port 80 is there already, as \"80\""), "{}", of("80,web:80/http"));
}

#[test]
fn probes_that_say_nothing_of_a_field_are_as_if_it_were_not_there_and_dollars_are_the_apps_own() {
    let probe = "livenessProbe: {httpGet: {host: '', path: '/$$a/$(B)/$c', port: 80, scheme: null}, exec: null}";
    let with = injected(&format!("{POD}    {probe}\n    readinessProbe: {{httpGet: null, tcpSocket: {{port: 81}}}}\n"));
    let told =
        |flag: &str| with.lines().find(|line| line.contains(flag)).unwrap_or_else(|| panic!("{with}")).to_owned();
    let live = told("c/livez=");
    assert!(live.contains("/$$$$a/$$(B)/$$c") && !live.contains("host") && !live.contains("null"), "{live}");
    assert!(told("c/readyz=").contains("tcpSocket"), "{with}");
}

#[test]
fn what_is_written_means_the_same_to_another_parser() {
    for file in corpus() {
        let out = injected(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(values(&out), values_of(&out), "{}", file.display());
    }
}

#[test]
fn documents_without_pods_are_passed_on_to_the_byte() {
    let text = "a-comment: &x  {b:   1}   # odd\napiVersion: v1\nkind: ConfigMap\r\n---\n\n\n--- # next\nkind:   Service\n\
        apiVersion: 'v1'\nspec: {ports: [  ]}\n...\n# end";
    assert_eq!(injected(text), text);
    assert_eq!(injected(""), "");
}

#[test]
fn a_pod_that_wants_none_loses_the_one_it_has() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    a: b\nspec:\n  containers:\n  - name: c\n    image: i\n";
    let with = injected(pod);
    let out = with.replace("    a: b\n", "    a: b\n    weft.dev/inject: disabled\n");
    assert_eq!(injected(&out), pod.replace("    a: b\n", "    a: b\n    weft.dev/inject: disabled\n"));
}

#[test]
fn an_older_sidecar_is_replaced() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    image: i\n";
    let old = Options { image: "weft:old".into(), ..options() };
    let old = filter("f", pod, Task::Inject(&old)).unwrap().text;
    assert!(old.contains("weft:old"));
    assert_eq!(injected(&old), injected(pod));
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    image: i\n";

#[test]
fn what_is_no_manifest_is_refused_with_its_place() {
    assert_eq!(
        error("a: 1\n"),
        "f.yaml:1:1: kind is missing: this is no object of Kubernetes (each document needs apiVersion and kind)"
    );
    assert!(error(&format!("{POD}---\nkind: Pod\n")).starts_with("f.yaml:10:1: document 2: apiVersion is missing"));
    assert!(error(&format!("{POD}---\n- kind: Pod\n")).starts_with("f.yaml:10:1: document 2: kind is missing"));
    assert!(error(&format!("{POD}---\na: [1\nb: 2\n")).starts_with("f.yaml:11:"), "{}", error("a: [1\nb: 2\n"));
    assert!(error("kind: Pod\nkind: Pod\n").starts_with("f.yaml:2:1: key \"kind\" is given twice"));
    assert!(
        error("apiVersion: apps/v1\nkind: Deployment\nspec: {}\n")
            .contains("spec.template: the pod template is missing")
    );
    assert!(
        error("apiVersion: v1\nkind: Pod\nspec: 7\n").contains("f.yaml:3:7: spec.containers: a pod needs containers")
    );
}

#[test]
fn a_port_that_is_none_is_refused_with_its_place() {
    for bad in ["http", "0", "70000", "-1", "8080.5"] {
        let text = format!("{POD}    ports:\n    - name: web\n      containerPort: {bad}\n");
        let found = error(&text);
        let place = "f.yaml:11:22: spec.containers[0].ports[0].containerPort: ";
        assert!(found.starts_with(place) && found.contains("is no port"), "{found}");
    }
    let taken = error(&format!("{POD}    ports:\n    - containerPort: 15008\n"));
    assert!(taken.contains("port 15008 is the sidecar's"), "{taken}");
    let probe = error(&format!("{POD}    livenessProbe: {{httpGet: {{port: web}}}}\n"));
    assert!(
        probe.contains("livenessProbe.httpGet.port: \"web\" is neither a number nor the name of a port"),
        "{probe}"
    );
}

#[test]
fn pods_that_cannot_have_a_sidecar_are_refused() {
    let with = |line: &str| error(&POD.replace("spec:\n", &format!("spec:\n  {line}\n")));
    assert!(with("hostNetwork: true").contains("f.yaml:6:16: spec.hostNetwork: the pod uses the network of its node"));
    assert!(with("hostNetwork: yes").contains("spec.hostNetwork"), "true in the YAML of Kubernetes");
    assert!(with("os: {name: windows}").contains("spec.os.name: the sidecar runs on Linux only"));
    assert!(with("volumes: [{name: weft}]").contains("the name \"weft\" is taken"));
    for other in ["istio-proxy", "linkerd-proxy", "weft-sidecar"] {
        let found = error(&POD.replace("name: c\n", &format!("name: {other}\n")));
        assert!(found.starts_with("f.yaml:7:11: spec.containers[0].name: ") && found.contains(other), "{found}");
    }
}

#[test]
fn annotations_are_checked() {
    let with = |annotation: &str| {
        error(&POD.replace("  name: p\n", &format!("  name: p\n  annotations:\n    {annotation}\n")))
    };
    let found = with("weft.dev/exclude-inbound-port: '1'");
    assert!(
        found.starts_with("f.yaml:6:36: metadata.annotations.weft.dev/exclude-inbound-port: unknown annotation"),
        "{found}"
    );
    assert!(found.contains("did you mean \"exclude-inbound-ports\"?"), "{found}");
    assert!(with("weft.dev/workers: 2").contains("must be text, in quotation marks"));
    for bad in [
        "inject: maybe",
        "ports: web:http",
        "ports: 80/htp",
        "exclude-inbound-ports: 9-10",
        "exclude-outbound-ports: x",
        "exclude-outbound-cidrs: 10.0.0.0/33",
        "cpu-request: lots",
        "memory-limit: 64MB",
        "workers: '0'",
        "upstreams: catalog",
        "log-level: a b",
    ] {
        let found = with(&format!("weft.dev/{bad}"));
        assert!(found.contains(": expected "), "{bad}: {found}");
    }
}

#[test]
fn what_an_injection_left_must_be_readable() {
    let text = POD.replace("  name: p\n", "  name: p\n  annotations:\n    weft.dev/injected: nonsense\n");
    assert!(error(&text).contains("what was injected here cannot be read"));
    assert!(filter("f", &text, Task::Uninject).is_err());
}

#[test]
fn a_thousand_documents_are_one_pass() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject/deployment.yaml")).unwrap();
    let text = format!("{text}---\n").repeat(500);
    let start = std::time::Instant::now();
    let filtered = inject(&text).unwrap();
    println!("1,000 documents, {} pods, {} bytes in {:?}", filtered.pods.len(), text.len(), start.elapsed());
    assert_eq!(filtered.pods.len(), 500);
}

#[test]
fn aliases_do_not_grow_without_end() {
    let mut bomb = "apiVersion: v1\nkind: Pod\na0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
    for level in 1..9 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", format!("*a{},", level - 1).repeat(10)));
    }
    assert!(error(&bomb).contains("more than 200000 values"));
    let deep = |levels: usize| error(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)));
    assert!(deep(65).contains("nested deeper than 64 levels"), "{}", deep(65));
    assert!(inject(&"[".repeat(100_000)).is_err());
}

#[test]
fn a_probe_keeps_what_is_not_about_where_it_goes() {
    let text = format!(
        "{POD}    ports: [{{containerPort: 80}}]\n    livenessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 7}}\n"
    );
    let pod = &values(&injected(&text))[0];
    let expected = json!({"httpGet": {"path": "/probe/c/livez", "port": 15021}, "periodSeconds": 7});
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"], expected);
}
