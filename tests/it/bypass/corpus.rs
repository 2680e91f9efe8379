//! Requests that mean a forbidden path, host, header or method to some server and look like another one: every way to
//! write them that has hit a proxy before, and what is next to those.

/// A request before it is written in a version of HTTP: bytes as they are.
#[derive(Clone)]
pub struct Mutant {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    /// Host or `:authority`.
    pub host: Vec<u8>,
    /// More lines, name and value.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

fn get(target: impl AsRef<[u8]>) -> Mutant {
    Mutant { method: b"GET".to_vec(), target: target.as_ref().to_vec(), host: b"web".to_vec(), fields: Vec::new() }
}

fn with(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Mutant {
    Mutant { fields: vec![(name.as_ref().to_vec(), value.as_ref().to_vec())], ..get("/") }
}

/// All of them.
pub fn mutants() -> Vec<Mutant> {
    let mut all: Vec<_> = paths().into_iter().map(get).collect();
    all.extend(methods());
    all.extend(hosts());
    all.extend(fields());
    all
}

/// Ways to write `/secret/file`.
fn paths() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = KNOWN.iter().map(|path| path.as_bytes().to_vec()).collect();
    let word = "/secret/file";
    for (at, letter) in word.bytes().enumerate() {
        let (before, after) = (&word[..at], &word[at + 1..]);
        let continued = 0x80 | (letter & 0x3f);
        let spelled = [
            format!("%{letter:02x}"),
            format!("%{letter:02X}"),
            format!("%25{letter:02x}"),
            format!("%2525{letter:02x}"),
            format!("%u00{letter:02x}"),
            // UTF-8 that is longer than it may be.
            format!("%{:02x}%{continued:02x}", 0xc0 | (letter >> 6)),
            format!("%e0%{:02x}%{continued:02x}", 0x80 | (letter >> 6)),
            format!("%f0%80%{:02x}%{continued:02x}", 0x80 | (letter >> 6)),
        ];
        all.extend(spelled.iter().map(|letter| format!("{before}{letter}{after}").into_bytes()));
        all.push([before.as_bytes(), &[0xc0 | (letter >> 6), continued], after.as_bytes()].concat());
    }
    let all_encoded = |format: fn(u8) -> String| word.bytes().map(format).collect::<String>();
    for format in [|b| format!("%{b:02x}"), |b| format!("%{b:02X}"), |b| format!("%25{b:02x}")] {
        all.push(format!("/{}", all_encoded(format)).into_bytes());
        all.push(format!("/{}", &all_encoded(format)[3..]).into_bytes());
    }
    // Every byte that is no letter, and its encoding, before, in and behind the forbidden segment.
    for byte in (0_u8..=255).filter(|byte| !byte.is_ascii_alphanumeric()) {
        let encoded = format!("%{byte:02x}");
        for part in [vec![byte], encoded.into_bytes()] {
            for (before, after) in [("/", "secret/file"), ("/secret", "/file"), ("", "/secret/file")] {
                all.push([before.as_bytes(), &part, after.as_bytes()].concat());
            }
        }
    }
    all
}

const KNOWN: &[&str] = &[
    "/secret/file",
    "/secret",
    "/secret/",
    "//secret/file",
    "///secret/file",
    "/secret//file",
    "/secret/./file",
    "/secret/x/../file",
    "/./secret/file",
    "/a/../secret/file",
    "/a/b/../../secret/file",
    "/../secret/file",
    "/../../secret/file",
    "/a/%2e%2e/secret/file",
    "/a/.%2e/secret/file",
    "/a/%2e./secret/file",
    "/a/%252e%252e/secret/file",
    "/a/..%2fsecret/file",
    "/a%2f../secret/file",
    "/a%2f..%2fsecret%2ffile",
    "/a/..%5csecret/file",
    "/a\\..\\secret\\file",
    "/%2e/secret/file",
    "/%2e%2fsecret/file",
    "/..;/secret/file",
    "/a/..;/secret/file",
    "/a/..;x=y/secret/file",
    "/a/;/../secret/file",
    "/;/secret/file",
    "/;a=b/secret/file",
    "/secret;/file",
    "/secret;a=b/file",
    "/secret/;a/file",
    "/secret/file;a",
    "/secret%3ba=b/file",
    "/secret%2ffile",
    "/secret%2Ffile",
    "/secret%252ffile",
    "/secret%5cfile",
    "/secret\\file",
    "\\secret\\file",
    "/\\secret/file",
    "/%5csecret/file",
    "%2fsecret/file",
    "/%2fsecret/file",
    "/SECRET/file",
    "/Secret/file",
    "/secret/file?x=/public",
    "/secret/file?",
    "/secret?/public",
    "/?/../secret/file",
    "/%3f/../secret/file",
    "/public?/../secret/file",
    "/secret/file#public",
    "/#/../secret/file",
    "/public#/../secret/file",
    "/%23/../secret/file",
    "#/secret/file",
    "/secret/..%00/file",
    "/public%00/../secret/file",
    "/secret%00.png",
    "http://web/secret/file",
    "http://web//secret/file",
    "http://web/a/../secret/file",
    "http://web/%73ecret/file",
    "HTTP://web/secret/file",
    "hTTp://web:80/secret/file",
    "http://user@web/secret/file",
    "http://web?/secret/file",
    "http://web#/secret/file",
    "http://web\\secret/file",
    "http:///secret/file",
    "http:/secret/file",
    "http:secret/file",
    "https://web/secret/file",
    "ftp://web/secret/file",
    "file:///secret/file",
    "//web/secret/file",
    "///web/secret/file",
    "web/secret/file",
    "web:80/secret/file",
    "secret/file",
    "./secret/file",
    "../secret/file",
    "*/secret/file",
    "?/secret/file",
    " /secret/file",
    "/secret/file ",
    "/secret/file HTTP/1.1 ",
    "/\u{ff0f}secret/file",
    "\u{ff0f}secret\u{ff0f}file",
    "/\u{ff53}ecret/file",
    "/s\u{212a}cret/file",
    "/\u{feff}secret/file",
    "/%ef%bb%bfsecret/file",
    "/%u002fsecret/file",
    "/%%32%66secret/file",
    "/%2%66secret/file",
    "/%/secret/file",
    "/secret%/file",
    "/secret%2/file",
    "/secret%zz/file",
];

fn methods() -> Vec<Mutant> {
    let method = |method: &[u8]| Mutant { method: method.to_vec(), ..get("/") };
    let mut all: Vec<_> = [
        b"DELETE".as_slice(),
        b"delete",
        b"Delete",
        b"dELETE",
        b"DeLeTe",
        b" DELETE",
        b"DELETE\t",
        b"\tDELETE",
        b"DELETE\0",
        b"\0DELETE",
        b"DELETE\r",
        b"\r\nDELETE",
        b"\nDELETE",
        b"GET\r\nDELETE",
        b"DELETE:",
        b"\"DELETE\"",
        b"DELETE,GET",
        b"GET,DELETE",
        b"GET DELETE",
        b"DELETE GET",
        b"D\xc3\x8bLETE",
    ]
    .map(method)
    .into();
    for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "_method"] {
        let field = (name.as_bytes().to_vec(), b"DELETE".to_vec());
        all.extend(["GET", "POST", "DELETE"].map(|verb| {
            let method = verb.as_bytes().to_vec();
            Mutant { method, fields: vec![field.clone(), (b"content-length".into(), b"0".into())], ..get("/") }
        }));
    }
    all
}

fn hosts() -> Vec<Mutant> {
    let host = |host: &[u8]| Mutant { host: host.to_vec(), ..get("/") };
    let mut all: Vec<_> = [
        b"secret.example".as_slice(),
        b"SECRET.EXAMPLE",
        b"Secret.Example",
        b"secret.example.",
        b"SECRET.example.",
        b"secret.example:80",
        b"secret.example:8080",
        b"secret.example.:80",
        b"secret.example:",
        b"secret.example:080",
        b"secret.example:0x50",
        b"secret.example:99999",
        b"secret.example..",
        b" secret.example",
        b"\tsecret.example",
        b"secret.example\t",
        b"user@secret.example",
        b"user:word@secret.example",
        b"web@secret.example",
        b"secret.example@web",
        b"secret.example,web",
        b"web,secret.example",
        b"web, secret.example",
        b"web secret.example",
        b"secret.example web",
        b"secret.example/",
        b"secret.example/a",
        b"secret.example?a",
        b"secret.example#a",
        b"secret.example\\a",
        b"secret.example\0",
        b"secret.example\0.web",
        b"web\0secret.example",
        b"secret%2eexample",
        b"secret.ex%61mple",
        b"http://secret.example",
        b"//secret.example",
        b"s\xc3\xa9cret.example",
        b"secret\xe3\x80\x82example",
        b"\xff.secret.example",
        b"[secret.example]",
        b"",
        b"web\r\nHost: secret.example",
        b"secret.example\r\nHost: web",
        b"web\r\nhost: secret.example",
        b"web\r\nHost : secret.example",
        b"web\r\n Host: secret.example",
        b"web\r\nHost:\tsecret.example",
        b"web\nHost: secret.example",
        b"web\rHost: secret.example",
    ]
    .map(host)
    .into();
    for authority in ["secret.example", "SECRET.example", "secret.example.", "secret.example:80", "user@secret.example"]
    {
        all.extend(
            ["web", "secret.example", ""]
                .map(|host| Mutant { host: host.as_bytes().to_vec(), ..get(format!("http://{authority}/")) }),
        );
        all.push(Mutant { host: b"secret.example".to_vec(), ..get(format!("http://web/?{authority}")) });
    }
    for name in ["host", "Host", "HOST", "X-Forwarded-Host", "X-Host", "Forwarded", "X-Original-Host", ":authority"] {
        all.push(with(name, "secret.example"));
    }
    all
}

fn fields() -> Vec<Mutant> {
    let mut all = Vec::new();
    let values = [
        b"admin".as_slice(),
        b"Admin",
        b"ADMIN",
        b" admin",
        b"\tadmin",
        b"admin ",
        b"admin\t",
        b"user,admin",
        b"user, admin",
        b"admin,user",
        b"admin , user",
        b"user,\tadmin,x",
        b",admin",
        b"admin,",
        b",,admin,,",
        b"user,,admin",
        b"user,\r\n admin",
        b"\r\n admin",
        b"user\r\nx-role: admin",
        b"user\nx-role: admin",
        b"user\rx-role: admin",
        b"user\0,admin",
        b"admin\0",
        b"admin\x0b",
        b"\"user\", admin",
        b"\"user, x\",admin",
    ];
    for value in values {
        for name in ["x-role", "X-Role", "X-ROLE", "x_role", "X_ROLE", "x-Role ", "x-role\t", " x-role", "x.role"] {
            all.push(with(name, value));
        }
    }
    let line = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    for lines in [
        [line("x-role", "user"), line("x-role", "admin")],
        [line("x-role", "admin"), line("x-role", "user")],
        [line("x-role", "user"), line("X-Role", "admin")],
        [line("X-ROLE", "admin"), line("x-role", "user")],
        [line("x-role", "user"), line("x_role", "admin")],
        [line("x_role", "admin"), line("x-role", "user")],
        [line("connection", "x-role"), line("x-role", "admin")],
        [line("x-role", "admin"), line("connection", "close, X-Role")],
        [line("x-role", ""), line("x-role", "admin")],
        [line("a", "b\rx-role: admin"), line("b", "c")],
    ] {
        all.push(Mutant { fields: lines.to_vec(), ..get("/") });
    }
    all
}
