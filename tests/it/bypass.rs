//! No way around a policy: thousands of odd requests to servers that would serve a secret, and identities that callers
//! claim. What comes back, and what an app is sent, is all that counts.

mod corpus;
mod wire;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    authorization::ends::{applied, policy},
    bypass::{
        corpus::{Mutant, mutants},
        wire::{http1, http2, raw},
    },
    mesh::{TestMesh, Workload},
    needs,
    net::{eventually, free, get, ok},
    process::Process,
};

const SECRET: &str = "the-crown-jewels";

/// A server that serves the secret, where nobody guards it.
struct Backend {
    name: &'static str,
    address: SocketAddr,
    front: SocketAddr,
    _process: Process,
}

fn program(name: &str) -> String {
    format!("{}/../tests/it/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn backend(dir: &Path, name: &'static str, command: impl FnOnce(SocketAddr) -> Vec<String>) -> Backend {
    let (address, front) = (free(), free());
    let words = command(address);
    let process = Process::start(Command::new(&words[0]).args(&words[1..]), &dir.join(format!("{name}.log")));
    eventually(name, || ok(get(address, "web", "/")));
    Backend { name, address, front, _process: process }
}

fn nginx(dir: &Path, address: SocketAddr) -> Vec<String> {
    std::fs::create_dir_all(dir.join("html/secret")).expect("a directory");
    std::fs::write(dir.join("html/index.html"), "public").expect("writable");
    std::fs::write(dir.join("html/secret/file"), SECRET).expect("writable");
    std::fs::write(dir.join("html/secret/index.html"), SECRET).expect("writable");
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let base = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {base}/{kind};\n"))
        .concat();
    let text = format!(
        "{user}\ndaemon off;\nworker_processes 1;\npid {base}/pid;\nerror_log {base}/error.log;\n\
         events {{ worker_connections 512; }}\nhttp {{\n  access_log off;\n{temporary}  \
         underscores_in_headers on;\n  ignore_invalid_headers off;\n  \
         map $http_x_role $admin {{ default 0; '~*(^|,)[ \\t\"]*admin[ \\t\"]*(,|$)' 1; }}\n  \
         server {{ listen {address} default_server; root {base}/html;\n    \
         if ($admin) {{ return 200 {SECRET}; }}\n    if ($request_method = DELETE) {{ return 200 {SECRET}; }}\n  }}\n  \
         server {{ listen {address}; server_name secret.example; return 200 {SECRET}; }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text).expect("writable");
    ["nginx", "-p", &base.to_string(), "-c", &file.display().to_string(), "-e", "stderr"].map(str::to_owned).to_vec()
}

fn backends(dir: &Path) -> Vec<Backend> {
    let node = |address: SocketAddr| {
        ["node", &program("lenient.js"), &address.ip().to_string(), &address.port().to_string()]
            .map(str::to_owned)
            .to_vec()
    };
    let python = |address: SocketAddr| vec!["python3".to_owned(), program("lenient.py"), address.to_string()];
    vec![
        backend(dir, "nginx", |address| nginx(dir, address)),
        backend(dir, "python", python),
        backend(dir, "node", node),
    ]
}

fn directory(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("weft-it-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}

fn holds(answer: &[u8], word: &str) -> bool {
    answer.windows(word.len()).any(|part| part == word.as_bytes())
}

/// How requests get to an app.
#[derive(Clone, Copy)]
struct Door {
    name: &'static str,
    address: SocketAddr,
    ask: fn(SocketAddr, &Mutant) -> Vec<u8>,
}

/// Through a plaintext front and through the mesh, each in both versions of HTTP.
fn doors(front: SocketAddr, local: SocketAddr) -> [Door; 4] {
    let http1: fn(SocketAddr, &Mutant) -> Vec<u8> = |address, mutant| raw(address, &http1(mutant));
    let http2: fn(SocketAddr, &Mutant) -> Vec<u8> = |address, mutant| http2(address, mutant, &[]);
    [
        Door { name: "front, HTTP/1.1", address: front, ask: http1 },
        Door { name: "front, HTTP/2", address: front, ask: http2 },
        Door { name: "mesh, HTTP/1.1", address: local, ask: http1 },
        Door { name: "mesh, HTTP/2", address: local, ask: http2 },
    ]
}

fn shown(mutant: &Mutant) -> String {
    String::from_utf8_lossy(&http1(mutant)).escape_debug().to_string()
}

#[test]
fn no_spelling_of_a_denied_path_host_header_or_method_gets_the_secret_from_a_real_server() {
    let test = "no_spelling_of_a_denied_path_host_header_or_method_gets_the_secret_from_a_real_server";
    if [("nginx", "-v"), ("python3", "--version"), ("node", "--version")]
        .into_iter()
        .any(|(program, arg)| needs::program(test, program, &[arg]))
    {
        return;
    }
    let dir = directory("backends");
    let (backends, mutants) = (backends(&dir), mutants());
    let mut builder = TestMesh::builder("bypass");
    for backend in &backends {
        let workload = Workload::beside(backend.name, backend.address, "http").front(backend.front);
        builder = builder.workload(workload).calls(backend.name);
    }
    let mesh = builder.start();
    let mut policies = String::new();
    for backend in &backends {
        let bare = mutants.iter().filter(|mutant| holds(&raw(backend.address, &http1(mutant)), SECRET)).count();
        assert!(bare >= 50, "{} serves its secret {bare} times where nothing is before it", backend.name);
        for (name, rule) in [
            ("path", "{paths: ['/secret/*']}"),
            ("host", "{hosts: [secret.example]}"),
            ("header", "{headers: {x-role: [admin]}}"),
            ("method", "{methods: [DELETE]}"),
        ] {
            let name = format!("{}-{name}", backend.name);
            policies += "---\n";
            policies += &policy(&name, backend.name, "Deny", &format!("[{{to: [{rule}]}}]"));
        }
    }
    applied(&mesh, &policies);
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for backend in &backends {
            for door in doors(backend.front, mesh.local(backend.name)) {
                let (found, mutants) = (&found, &mutants);
                scope.spawn(move || {
                    let mut public = 0;
                    for mutant in mutants {
                        let answer = (door.ask)(door.address, mutant);
                        public += usize::from(holds(&answer, "public"));
                        if holds(&answer, SECRET) {
                            let line = format!("{}, {}: {}", backend.name, door.name, shown(mutant));
                            found.lock().expect("whole").push(line);
                        }
                    }
                    assert!(public >= 5, "{}, {}: {public} requests got through", backend.name, door.name);
                });
            }
        }
    });
    let found = found.into_inner().expect("whole");
    let made = mutants.len() * backends.len() * 4;
    assert!(mutants.len() >= 1000, "{} requests", mutants.len());
    assert!(found.is_empty(), "{} of {made}:\n{}", found.len(), found.join("\n"));
    drop((mesh, backends));
    let _ = std::fs::remove_dir_all(dir);
}

/// An app that keeps all that it is sent, and answers each request at its end.
fn keeper() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(free()).expect("a free port");
    let (address, kept) = (listener.local_addr().expect("bound"), Arc::new(Mutex::new(Vec::new())));
    let shared = Arc::clone(&kept);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let kept = Arc::clone(&shared);
            thread::spawn(move || {
                let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    request.extend(&bytes[..length]);
                    kept.lock().expect("whole").extend(&bytes[..length]);
                    let chunked = holds(&request.to_ascii_lowercase(), "transfer-encoding: chunked");
                    if request.ends_with(b"\r\n\r\n") && (!chunked || holds(&request, "\r\n0\r\n")) {
                        request.clear();
                        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, kept)
}

/// Every way to write `name`: hyphens that some servers take for the same, in three cases.
fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for character in name.chars() {
        let ways: &[char] = if character == '-' { &['-', '_'] } else { &[character] };
        all = all.iter().flat_map(|begun| ways.iter().map(move |way| format!("{begun}{way}"))).collect();
    }
    all.extend([name.replace('-', "."), name.replace('-', "~"), name.replace('-', "+")]);
    let odd = |name: &String| {
        name.char_indices().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect::<String>()
    };
    all.iter().flat_map(|name| [name.clone(), name.to_ascii_uppercase(), odd(name)]).collect()
}

/// Fields that claim an identity, each with the marker as value: alone, twice, nominated, and with what may part them.
fn claims() -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let line = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let marked = "By=spiffe://weft.local/ns/a/sa/spoofed;URI=spiffe://weft.local/ns/a/sa/spoofed";
    let mut all = Vec::new();
    for name in ["x-forwarded-client-cert", "l5d-client-id", "x-weft-peer", "x-weft-caller-version", "x-weft-namespace"]
    {
        for name in spellings(name) {
            all.push(vec![line(&name, marked)]);
            all.push(vec![line(&name, marked), line(&name, "spoofed")]);
            all.push(vec![line("connection", &name), line(&name, marked)]);
            all.push(vec![line(&name, marked), line("connection", &format!("close, {name}"))]);
        }
        for odd in
            [format!("{name} "), format!(" {name}"), format!("{name}\t"), format!("a\r\n{name}"), format!("a\n{name}")]
        {
            all.push(vec![line(&odd, marked)]);
        }
        all.push(vec![line("a", &format!("b\r{name}: {marked}"))]);
        all.push(vec![line("a", &format!("b\n{name}: {marked}"))]);
    }
    all
}

#[test]
fn identities_that_callers_claim_never_reach_the_app_in_any_spelling() {
    let (app, kept) = keeper();
    let front = free();
    let workload = Workload::beside("web", app, "http").front(front);
    let mesh = TestMesh::builder("spoofed").workload(workload).calls("web").start();
    let local = mesh.local("web");
    eventually("a call", || ok(get(local, "web", "/")));
    let claims = claims();
    assert!(claims.len() >= 300, "{} variants", claims.len());
    let mut variants = 0;
    for (number, fields) in claims.iter().enumerate() {
        let mutant = |target: &str| Mutant {
            method: b"GET".to_vec(),
            target: target.as_bytes().to_vec(),
            host: b"web".to_vec(),
            fields: fields.clone(),
        };
        for door in doors(front, local) {
            let answer = (door.ask)(door.address, &mutant(&format!("/{number}")));
            assert!(
                !answer.is_empty() || !fields[0].0.is_ascii(),
                "{}: no answer to {}",
                door.name,
                shown(&mutant("/"))
            );
            variants += 1;
        }
        // The same in trailers.
        let lines: Vec<u8> =
            fields.iter().flat_map(|(name, value)| [name, b": ".as_slice(), value, b"\r\n"].concat()).collect();
        let chunked = b"POST /trailers HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nConnection: close\r\n\r\n4\r\nbody\r\n0\r\n";
        let post = Mutant {
            method: b"POST".to_vec(),
            fields: vec![(b"te".to_vec(), b"trailers".to_vec())],
            ..mutant("/trailers")
        };
        let lower: Vec<_> = fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        for address in [front, local] {
            raw(address, &[chunked.as_slice(), &lines, b"\r\n"].concat());
            http2(address, &post, &lower);
            variants += 2;
        }
    }
    assert!(variants >= 2000, "{variants}");
    // Whoever is called last has had all that was forwarded before.
    eventually("the last call", || ok(get(local, "web", "/last")));
    let kept = String::from_utf8_lossy(&kept.lock().expect("whole")).into_owned();
    let first = |line: &str| line.contains(" /0 HTTP/1.1");
    assert!(kept.lines().any(first) && kept.contains("POST /trailers"), "requests got through without their claims");
    assert!(kept.contains("spiffe://weft.local/ns/default/sa/client"), "the mesh's own field is there");
    let bad: Vec<_> = kept.lines().filter(|line| line.contains("spoofed")).collect();
    assert!(bad.is_empty(), "{} of {variants}: {bad:?}", bad.len());
    // What the app was sent is in the one form that the decision saw.
    for line in kept.lines().filter(|line| line.ends_with(" HTTP/1.1")) {
        let target = line.split(' ').nth(1).expect("a target");
        assert_eq!(weft_policy::canonical::canonical_path(target), Ok(None), "{line}");
    }
}
