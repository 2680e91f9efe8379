//! Servers that people run, behind `weft run`, under the load tools that people use: nginx in HTTP/1.1 and HTTP/2,
//! Redis through a tunnel.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use crate::{
    mesh::{TestMesh, Workload},
    needs,
    net::{eventually, free, get, metric, ok},
};

/// A configuration of nginx that needs nothing of the machine's own.
fn nginx(name: &str) -> (SocketAddr, Vec<String>, PathBuf) {
    let dir = std::env::temp_dir().join(format!("weft-it-{}-{name}-nginx", std::process::id()));
    std::fs::create_dir_all(dir.join("html")).expect("a directory");
    std::fs::write(dir.join("html/index.html"), "x".repeat(1024)).expect("writable");
    let address = free();
    // As root, the workers would become another user, who may not read a temporary directory.
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let base = dir.display();
    let text = format!(
        "{user}\ndaemon off;\nworker_processes 1;\npid {base}/pid;\nerror_log {base}/error.log;\n\
         events {{ worker_connections 512; }}\nhttp {{\n  access_log off;\n  client_body_temp_path {base}/body;\n  \
         proxy_temp_path {base}/proxy;\n  fastcgi_temp_path {base}/fastcgi;\n  uwsgi_temp_path {base}/uwsgi;\n  \
         scgi_temp_path {base}/scgi;\n  server {{ listen {address}; root {base}/html; }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text).expect("writable");
    let command = ["nginx", "-p", &base.to_string(), "-c", &file.display().to_string(), "-e", "stderr"];
    (address, command.map(str::to_owned).to_vec(), dir)
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}: {text}", output.status);
    text
}

/// The number that stands before or after a word of a tool's report.
fn number(text: &str) -> u64 {
    let digits: String = text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number in {text:?}"))
}

#[test]
fn nginx_serves_a_load_of_http1_and_http2_callers_without_an_error() {
    let test = "nginx_serves_a_load_of_http1_and_http2_callers_without_an_error";
    if [("nginx", "-v"), ("wrk", "-v"), ("h2load", "--version")]
        .into_iter()
        .any(|(program, arg)| needs::program(test, program, &[arg]))
    {
        return;
    }
    let (address, command, dir) = nginx("load");
    let mesh = TestMesh::builder("nginx").workload(Workload::run("web", address, "http", command)).calls("web").start();
    let local = mesh.local("web");
    let page = eventually("the page", || ok(get(local, "web", "/")));
    assert!(page.contains("Server: nginx") || page.contains("server: nginx"), "{page}");

    let url = format!("http://{local}/");
    let report = run("wrk", &["-t", "2", "-c", "16", "-d", "2s", &url]);
    let requests = report.lines().find(|line| line.contains("requests in")).expect("a count");
    assert!(number(requests) > 100, "{report}");
    for bad in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(bad), "{report}");
    }

    let report = run("h2load", &["-n", "5000", "-c", "16", "-m", "8", &url]);
    let requests = report.lines().find(|line| line.starts_with("requests:")).expect("a count");
    assert!(requests.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"), "{report}");
    assert!(report.contains("Application protocol: h2c"), "{report}");
    let status = report.lines().find(|line| line.starts_with("status codes:")).expect("status codes");
    assert!(status.contains("5000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{report}");

    // All of it crossed the mesh, and none of it was answered by a sidecar.
    let count = |class: &str| metric(mesh.admin("web"), "weft_http_requests_total", &["tls=\"mtls\"", class]);
    assert!(count("2xx") >= 5100.0, "{}", count("2xx"));
    assert!(count("5xx") < 0.5, "{}", count("5xx"));
    drop(mesh);
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn redis_keeps_what_it_is_given_and_a_benchmark_through_the_tunnel_has_no_error() {
    let test = "redis_keeps_what_it_is_given_and_a_benchmark_through_the_tunnel_has_no_error";
    if ["redis-server", "redis-cli", "redis-benchmark"]
        .into_iter()
        .any(|program| needs::program(test, program, &["--version"]))
    {
        return;
    }
    let address = free();
    let port = address.port().to_string();
    let command =
        ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"].map(str::to_owned);
    let mesh = TestMesh::builder("redis").workload(Workload::run("kv", address, "tcp", command)).calls("kv").start();
    let local = mesh.local("kv").port().to_string();
    let cli = |args: &[&str]| run("redis-cli", &[&["-h", "127.0.0.1", "-p", &local], args].concat());
    let value = "a value of 100 KiB".repeat(5700);
    eventually("an answer", || match cli(&["PING"]).trim() {
        "PONG" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(cli(&["SET", "kept", &value]).trim(), "OK");
    assert_eq!(cli(&["GET", "kept"]).trim(), value);

    let benchmark = ["-h", "127.0.0.1", "-p", &local, "-c", "16", "-n", "5000", "-t", "set,get,lpush", "--csv"];
    let report = run("redis-benchmark", &benchmark);
    for command in ["\"SET\"", "\"GET\"", "\"LPUSH\""] {
        let rate = report.lines().find_map(|line| line.strip_prefix(command)).expect("a result");
        assert!(number(rate) > 0, "{report}");
    }
    assert!(!report.to_lowercase().contains("error"), "{report}");
    let counted = cli(&["LLEN", "mylist"]);
    assert_eq!(counted.trim(), "5000", "each push was made once");
    assert!(metric(mesh.client_admin(), "weft_tcp_sent_bytes_total", &["default/kv", "tls=\"mtls\""]) > 100_000.0);
}
