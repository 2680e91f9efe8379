//! The program itself without `--dev`: TLS, tokens and roles, as curl and kubectl see them. Without those programs the
//! test is left out, and says so.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

const CURL: &str = "/usr/bin/curl";
const KUBECTL: &str = "/usr/bin/kubectl";
const LIMIT: Duration = Duration::from_secs(60);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, name: http}]}
";

/// The program, with a directory of its own. It ends with the value.
struct ControlPlane {
    child: Child,
    directory: tempfile::TempDir,
    url: String,
    log: mpsc::Receiver<String>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(directory: &Path, api: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-control-plane"));
    command.env("NO_COLOR", "1").arg("--data-dir").arg(directory.join("data"));
    command.args(["--api-listen", api, "--xds-listen", "127.0.0.1:0"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl ControlPlane {
    fn start(directory: tempfile::TempDir) -> Self {
        let mut child = command(directory.path(), "127.0.0.1:0", &[]).spawn().expect("the control plane starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines {
                let _ = sender.send(line);
            }
        });
        let mut all = Vec::new();
        let port = loop {
            let line = log.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("{error}: {all:?}"));
            all.push(line.clone());
            if let Some((_, rest)) = line.split_once("api=127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect::<String>();
            }
        };
        let (sender, read) = mpsc::channel();
        for line in all {
            let _ = sender.send(line);
        }
        // What was read so far, then the rest.
        std::thread::spawn(move || log.iter().try_for_each(|line| sender.send(line)));
        Self { child, directory, url: format!("https://localhost:{port}"), log: read }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join("data").join(name).to_str().expect("text").to_owned()
    }

    fn admin(&self) -> String {
        std::fs::read_to_string(self.file("admin.token")).expect("a token").trim().to_owned()
    }

    /// Status and body. The token is given on standard input: arguments can be seen by others.
    fn curl(&self, token: &str, arguments: &[&str], path: &str) -> (u16, String) {
        let mut command = Command::new(CURL);
        command.args(["-sS", "--config", "-", "--cacert", &self.file("root.pem"), "-w", "\n%{http_code}"]);
        let url = format!("{}{path}", self.url);
        let config =
            if token.is_empty() { String::new() } else { format!("header = \"Authorization: Bearer {token}\"\n") };
        let said = fed(command.args(arguments).arg(url), &config);
        let (body, code) = said.out.rsplit_once('\n').unwrap_or_else(|| panic!("{said:?}"));
        (code.parse().unwrap_or_else(|_| panic!("{said:?}")), body.to_owned())
    }

    fn kubectl(&self, token: &str, arguments: &[&str], input: &str) -> Said {
        let mut command = Command::new(KUBECTL);
        let home = self.directory.path();
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("KUBECONFIG", home.join("none"));
        command.args(["--server", &self.url, "--certificate-authority", &self.file("root.pem"), "--token", token]);
        fed(command.args(arguments), input)
    }
}

/// What a program printed, and whether it was content.
#[derive(Debug)]
struct Said {
    ok: bool,
    out: String,
    err: String,
}

fn fed(command: &mut Command, input: &str) -> Said {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("read");
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

fn started(test: &str) -> Option<ControlPlane> {
    for program in [CURL, KUBECTL] {
        if !Path::new(program).exists() {
            leave_out(&format!("{test}: {program} does not exist"));
            return None;
        }
    }
    Some(ControlPlane::start(tempfile::tempdir().expect("a directory")))
}

fn leave_out(why: &str) {
    println!("left out: {why}");
    if let Some(file) = std::env::var_os("WEFT_LEFT_OUT")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(file)
    {
        let _ = writeln!(file, "{why}");
    }
}

fn token(made: &str) -> String {
    let made: serde_json::Value = serde_json::from_str(made).unwrap_or_else(|error| panic!("{error}: {made}"));
    made["token"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
}

#[test]
fn curl_needs_https_and_a_token_and_the_log_keeps_the_secret() {
    let Some(control_plane) = started("access-curl") else { return };
    let admin = control_plane.admin();
    assert_eq!(control_plane.curl("", &[], "/readyz").0, 200);
    let (code, body) = control_plane.curl("", &["-D", "-"], "/api/v1/services");
    assert!(code == 401 && body.to_lowercase().contains("www-authenticate: bearer realm"), "{body}");
    assert_eq!(control_plane.curl("weft1a.x.y", &[], "/api/v1/services").0, 401);
    assert_eq!(control_plane.curl(&admin, &["--tlsv1.2", "--tls-max", "1.2"], "/api/v1/services").0, 200);
    assert_eq!(control_plane.curl(&admin, &["--tlsv1.3"], "/weft/v1/history/verify").0, 200);
    let (_, metrics) = control_plane.curl(&admin, &[], "/metrics");
    assert!(metrics.contains("weft_api_denied_total{reason=\"missing\"} 1"), "{metrics}");
    let mut plain = Command::new(CURL);
    let said = fed(plain.arg("-sS").arg(control_plane.url.replace("https", "http")), "");
    assert!(said.out.contains("this port speaks TLS"), "{said:?}");
    let mut unknown = Command::new(CURL);
    assert!(
        !fed(unknown.args(["-sS", "--config", "-"]).arg(&control_plane.url), "").ok,
        "no other root vouches for it"
    );

    let (code, made) = control_plane.curl(&admin, &["-d", r#"{"name":"ci","role":"viewer"}"#], "/weft/v1/tokens");
    assert_eq!(code, 201, "{made}");
    let viewer = token(&made);
    assert_eq!(control_plane.curl(&viewer, &["-X", "DELETE"], "/weft/v1/tokens/x").0, 403);
    let secret = |token: &str| token.rsplit_once('.').expect("a secret").1.to_owned();
    let mut logged = String::new();
    while !logged.contains("reason=\"role\"") {
        logged.push_str(&control_plane.log.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("{error}: {logged}")));
        logged.push('\n');
    }
    assert!(logged.contains("admin.token") && logged.contains("audit: token made"), "{logged}");
    assert!(!logged.contains(&secret(&admin)) && !logged.contains(&secret(&viewer)), "{logged}");
}

#[test]
fn kubectl_works_with_token_and_root_as_far_as_the_role_goes() {
    let Some(control_plane) = started("access-kubectl") else { return };
    let admin = control_plane.admin();
    let said = control_plane.kubectl(&admin, &["apply", "-f", "-"], SERVICE);
    assert!(said.ok && said.out.contains("service/cart created"), "{said:?}");
    let wanted = r#"{"name":"ed","role":"editor","namespace":"shop"}"#;
    let said = control_plane.kubectl(&admin, &["create", "--raw", "/weft/v1/tokens", "-f", "-"], wanted);
    let editor = token(&said.out);
    let said = control_plane.kubectl(&editor, &["-n", "shop", "label", "svc", "cart", "tier=back"], "");
    assert!(said.ok, "{said:?}");
    let said = control_plane.kubectl(&editor, &["-n", "bank", "get", "svc"], "");
    assert!(!said.ok && said.err.contains("(Forbidden): User \"ed\" (role editor in namespace \"shop\") cannot list resource \"services\" in namespace \"bank\""), "{said:?}");
    let said = control_plane.kubectl("weft1a.x.y", &["get", "svc"], "");
    assert!(!said.ok && said.err.contains("Unauthorized") || said.err.contains("must be logged in"), "{said:?}");
    let said = control_plane.kubectl(&editor, &["auth", "whoami"], "");
    assert!(said.ok && said.out.contains("ed") && said.out.contains("weft.dev/role"), "{said:?}");
    for (namespace, answer) in [("shop", "yes"), ("bank", "no")] {
        let said = control_plane.kubectl(&editor, &["-n", namespace, "auth", "can-i", "delete", "services"], "");
        assert!(said.out.trim().starts_with(answer), "{said:?}");
    }
    let history = control_plane.kubectl(&admin, &["get", "--raw", "/weft/v1/history"], "");
    let history: serde_json::Value = serde_json::from_str(&history.out).expect("JSON");
    let authors = history["items"].as_array().expect("items").iter().map(|event| &event["author"]);
    // Weft itself writes statuses.
    assert_eq!(authors.filter(|author| *author != "weft").collect::<Vec<_>>(), ["ed", "admin"]);
}

#[test]
fn a_restart_keeps_tokens_and_root_and_dev_is_refused_on_an_address_that_others_reach() {
    let Some(mut control_plane) = started("access-restart") else { return };
    let (admin, root) = (control_plane.admin(), std::fs::read(control_plane.file("root.pem")).expect("a root"));
    control_plane.child.kill().expect("killed");
    control_plane.child.wait().expect("ended");
    let directory = std::mem::replace(&mut control_plane.directory, tempfile::tempdir().expect("a directory"));
    let again = ControlPlane::start(directory);
    assert_eq!(std::fs::read(again.file("root.pem")).expect("a root"), root);
    assert_eq!(again.admin(), admin);
    assert_eq!(again.curl(&admin, &[], "/api/v1/services").0, 200);

    let mut refused = command(again.directory.path(), "0.0.0.0:0", &["--dev"]).spawn().expect("it starts");
    let (sender, said) = mpsc::channel();
    let stderr = refused.stderr.take().expect("piped");
    std::thread::spawn(move || sender.send(std::io::read_to_string(stderr)));
    let said = said.recv_timeout(LIMIT);
    let _ = refused.kill();
    let status = refused.wait().expect("ended");
    let said = said.expect("it gave up by itself").expect("text");
    assert!(!status.success() && said.contains("loopback only; leave out --dev"), "{said}");
}
