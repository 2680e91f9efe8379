//! The metrics of a real mesh, as Prometheus reads them: the text is clean, and everything that rules and dashboards ask
//! for is there.

mod hostile;
mod queries;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    apps::recorder,
    mesh::{TestMesh, Workload},
    needs,
    net::{call, connect, eventually, free, get, metric, ok},
    process::Process,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: split
spec:
  parentRefs:
  - {group: '', kind: Service, name: web}
  rules:
  - name: all
    backendRefs:
    - {name: web, port: 80, weight: 3}
    - {name: half, port: 80, weight: 1}
";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A mesh in which everything has happened that is counted: requests that went well, were sent again, failed, found an
/// open circuit, came in plaintext; opaque connections; calls to nobody.
fn busy(name: &str) -> TestMesh {
    let (web, half, tcp) = (recorder(OK).0, recorder(OK).0, recorder(b"bytes").0);
    let (front, dead) = (free(), free());
    let mesh = TestMesh::builder(name)
        .resource("route.yaml", ROUTE)
        .replicas("web", "http", &[web])
        .outside("half", "http", &[half, dead])
        .outside("gone", "http", &[dead])
        .outside("shut", "tcp", &[dead])
        .workload(Workload::beside("kv", tcp, "tcp"))
        .workload(Workload::beside("plain", recorder(OK).0, "").front(front))
        .calls("web")
        .calls("half")
        .calls("gone")
        .calls("kv")
        .calls("shut")
        .start();
    eventually("web", || ok(get(mesh.local("web"), "web", "/")));
    for _ in 0..40 {
        let _ = get(mesh.local("web"), "web", "/");
        let _ = get(mesh.local("half"), "half", "/");
        let _ = get(mesh.local("gone"), "gone", "/");
    }
    let head = "Host: web\r\nConnection: close\r\nContent-Length: 5\r\n";
    let _ = call(mesh.local("web"), &format!("POST / HTTP/1.1\r\n{head}\r\nhello"));
    let head = "Host: gone\r\nConnection: close\r\nContent-Type: application/grpc\r\n";
    let _ = call(mesh.local("gone"), &format!("GET /a.B/C HTTP/1.1\r\n{head}\r\n"));
    let _ = get(mesh.outbound(), "nobody.x.y", "/");
    let _ = get(mesh.local("shut"), "shut", "/");
    eventually("the plaintext front", || ok(get(front, "plain", "/")));
    eventually("kv", || {
        let mut stream = connect(mesh.local("kv"))?;
        stream.write_all(b"hello").map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut bytes).map_err(|error| error.to_string())?;
        if bytes == b"bytes" { Ok(()) } else { Err(format!("{bytes:?}")) }
    });
    mesh
}

/// The body of a scrape.
fn scrape(address: SocketAddr, accept: &str) -> String {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept}\r\n\r\n");
    let text = eventually("a scrape", || ok(call(address, &request)));
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    // Nothing here is longer than one piece: what is sent in pieces begins with its length.
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    body.to_owned()
}

fn promtool(args: &[&str], input: &str, dir: &Path) -> Result<(), String> {
    let mut command = Command::new("promtool");
    let command = command.args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).map_err(|error| error.to_string())?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(format!("promtool {args:?}: {text}")) }
}

/// The labels of each name in these scrapes.
fn exported(texts: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in texts.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a sample");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        // Our label values have neither quotes nor commas.
        let names = labels.trim_end_matches('}').split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
        found.entry(name.to_owned()).or_default().extend(names);
    }
    found
}

#[test]
fn what_a_mesh_exports_is_clean_and_has_everything_that_rules_and_dashboards_ask_for() {
    let name = "what_a_mesh_exports_is_clean_and_has_everything_that_rules_and_dashboards_ask_for";
    if needs::program(name, "promtool", &["--version"]) {
        return;
    }
    let mesh = busy("metrics");
    let sidecars = [mesh.client_admin(), mesh.admin("web-0"), mesh.admin("kv"), mesh.admin("plain")];
    let texts: Vec<_> = sidecars.into_iter().chain([mesh.api]).map(|address| scrape(address, "text/plain")).collect();
    for text in &texts {
        promtool(&["check", "metrics"], text, &mesh.dir).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
    // The same in the other form, whose parser promtool does not offer: its frame at least.
    for address in sidecars.into_iter().chain([mesh.api]) {
        let text = scrape(address, OPENMETRICS);
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
        let counters = text.lines().filter(|line| line.starts_with("# TYPE ") && line.ends_with(" counter"));
        assert!(counters.clone().count() > 3 && !counters.clone().any(|line| line.contains("_total")), "{text}");
    }
    let exported = exported(&texts);
    let failures = queries::check(&deploy(), &exported);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // Retries are hidden from the caller, and told.
    assert!(metric(mesh.client_admin(), "weft_upstream_retried_requests_total", &["outcome=\"success\""]) > 0.5);
    let routed = ["route=\"default/split#all\"", "service=\"default/web\"", "peer_service=\"default/client\""];
    assert!(metric(mesh.client_admin(), "weft_http_requests_total", &routed) > 0.5, "{}", texts[0]);
    let by = ["peer_service=\"default/client\"", "service=\"default/web\"", "tls=\"mtls\""];
    assert!(metric(mesh.admin("web-0"), "weft_http_requests_total", &by) > 0.5, "{}", texts[1]);
    assert!(metric(mesh.client_admin(), "weft_http_request_bytes_total", &["direction=\"outbound\""]) > 4.5);
    assert!(metric(mesh.client_admin(), "weft_http_response_bytes_total", &["default/web"]) > 99.5);
    let plain = ["peer_service=\"unknown\"", "tls=\"none\"", "service=\"default/plain\""];
    assert!(metric(mesh.admin("plain"), "weft_http_requests_total", &plain) > 0.5, "{}", texts[3]);
}

#[test]
fn the_files_for_prometheus_are_valid_and_their_rules_do_what_they_say() {
    let name = "the_files_for_prometheus_are_valid_and_their_rules_do_what_they_say";
    if needs::program(name, "promtool", &["--version"]) {
        return;
    }
    let dir = deploy().join("prometheus");
    for args in [
        &["check", "config", "prometheus.yml"][..],
        &["check", "rules", "rules/recording.yml", "rules/alerts.yml", "rules/istio.yml"],
        &["test", "rules", "tests.yml"],
    ] {
        promtool(args, "", &dir).unwrap_or_else(|error| panic!("{error}"));
    }
    // What dashboards ask must be a query at all.
    let mut rules = "groups:\n- name: dashboards\n  rules:\n".to_owned();
    for (number, query) in queries::dashboards(&deploy()).into_iter().enumerate() {
        rules += &format!("  - record: q{number}\n    expr: {}\n", serde_json::Value::String(query));
    }
    let file = std::env::temp_dir().join(format!("weft-it-{}-dashboards.yml", std::process::id()));
    std::fs::write(&file, rules).expect("writable");
    promtool(&["check", "rules", &file.to_string_lossy()], "", &dir).unwrap_or_else(|error| panic!("{error}"));
    let _ = std::fs::remove_file(file);
}

/// Prometheus itself is the parser of OpenMetrics, and finds the sidecars by what the control plane tells it.
#[test]
fn prometheus_finds_and_scrapes_all_of_a_mesh_by_what_the_control_plane_tells_it() {
    let name = "prometheus_finds_and_scrapes_all_of_a_mesh_by_what_the_control_plane_tells_it";
    if needs::program(name, "prometheus", &["--version"]) {
        return;
    }
    let mesh = busy("prometheus");
    let (own, api) = (free(), mesh.api);
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: weft-control-plane\n  \
         static_configs: [{{targets: ['{api}']}}]\n- job_name: weft-sidecar\n  http_sd_configs:\n  - {{url: \
         'http://{api}/weft/v1/prometheus/targets', refresh_interval: 1s}}\n"
    );
    let file = mesh.dir.join("prometheus.yml");
    std::fs::write(&file, config).expect("writable");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", mesh.dir.join("tsdb").display()));
    command.arg(format!("--web.listen-address={own}"));
    let prometheus = Process::start(&mut command, &mesh.dir.join("prometheus.log"));
    eventually("five targets that are up", || {
        let text = ok(get(own, "localhost", "/api/v1/targets?state=active"))
            .map_err(|error| format!("{error}; its log: {}", prometheus.output()))?;
        let up = text.matches("\"health\":\"up\"").count();
        if up == 5 && !text.contains("\"health\":\"down\"") { Ok(()) } else { Err(text) }
    });
    let found = ok(get(own, "localhost", "/api/v1/query?query=weft_http_requests_total")).expect("an answer");
    assert!(found.contains("\"workload\":\"default/web-0\"") && found.contains("weft_http_requests_total"), "{found}");
}
