//! Servers that people run, configured to need nothing of the machine's own.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use super::{MARKER, lan::ran};
use crate::needs;

/// Their files.
pub struct Servers {
    dir: PathBuf,
    postgres: Option<PathBuf>,
    line: Lines,
}

/// Command lines, kept so that they can be lent.
struct Lines {
    nginx: [String; 7],
    redis: [String; 9],
    postgres: Vec<String>,
}

/// Whether `test` is left out for want of PostgreSQL's server, which is in no PATH.
pub fn lacks_postgres(test: &str) -> bool {
    let program = binaries().map(|dir| dir.join("postgres").display().to_string());
    needs::program(test, program.as_deref().unwrap_or("postgres"), &["--version"])
        || needs::program(test, "setpriv", &["--version"])
}

/// The newest version's.
fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.flatten().map(|version| version.path().join("bin")).max()
}

impl Servers {
    pub fn new(dir: &Path) -> Self {
        let base = dir.display();
        let nginx = ["nginx", "-p", &base.to_string(), "-c", &format!("{base}/nginx.conf"), "-e", "stderr"];
        let redis = ["redis-server", "--port", "6379", "--bind", "0.0.0.0", "--save", "", "--dir", &base.to_string()];
        let line = Lines { nginx: nginx.map(str::to_owned), redis: redis.map(str::to_owned), postgres: Vec::new() };
        let mut servers = Self { dir: dir.into(), postgres: binaries(), line };
        servers.line.postgres = servers.postgres_line();
        servers.nginx_files();
        servers
    }

    /// HTTP/1.1 at 80, HTTP/2 without TLS at 81, TLS at 443 and 8443, in both versions of IP.
    pub fn nginx(&self) -> Vec<&str> {
        self.line.nginx.iter().map(String::as_str).collect()
    }

    /// At 6379.
    pub fn redis(&self) -> Vec<&str> {
        let protected = ["--protected-mode", "no"];
        self.line.redis.iter().map(String::as_str).chain(protected).collect()
    }

    /// At 5432, for the user `postgres` without a password.
    pub fn postgres(&self) -> Vec<&str> {
        let (data, user) = (self.dir.join("postgres"), "postgres");
        fs::create_dir_all(&data).expect("a directory");
        let (_, ids) = ran(Command::new("id").args(["-u", user]));
        let id: u32 = ids.trim().parse().expect("the package makes the user");
        chown(&data, Some(id), None).expect("root");
        let init = self.postgres.as_ref().expect("installed").join("initdb");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(init).current_dir("/");
        let (code, text) = ran(command.args(["-A", "trust", "-U", user, "--no-sync", "-D"]).arg(&data));
        assert_eq!(code, 0, "{text}");
        let mut hosts = fs::read_to_string(data.join("pg_hba.conf")).expect("made");
        hosts.push_str("host all all 0.0.0.0/0 trust\n");
        fs::write(data.join("pg_hba.conf"), hosts).expect("writable");
        self.line.postgres.iter().map(String::as_str).collect()
    }

    fn postgres_line(&self) -> Vec<String> {
        let program = self.postgres.as_ref().map_or_else(PathBuf::new, |dir| dir.join("postgres"));
        let line = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"];
        let data = self.dir.join("postgres");
        let rest =
            [&program.to_string_lossy(), "-D", &data.to_string_lossy(), "-h", "0.0.0.0", "-k", ""].map(str::to_owned);
        line.map(str::to_owned).into_iter().chain(rest).collect()
    }

    fn nginx_files(&self) {
        let (dir, base) = (&self.dir, self.dir.display());
        fs::create_dir_all(dir.join("html")).expect("a directory");
        fs::write(dir.join("html/index.html"), format!("{MARKER}\n")).expect("writable");
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        command
            .args(["-subj", "/CN=web"])
            .arg("-keyout")
            .arg(dir.join("key.pem"))
            .arg("-out")
            .arg(dir.join("cert.pem"));
        let (code, text) = ran(&mut command);
        assert_eq!(code, 0, "{text}");
        let server = |listen: &str| {
            let both = format!("listen {listen}; listen [::]:{listen};");
            format!(
                "  server {{ {both} root {base}/html; ssl_certificate {base}/cert.pem; ssl_certificate_key {base}/key.pem; }}\n"
            )
        };
        let all: String = ["80", "81 http2", "443 ssl", "8443 ssl"].map(server).concat();
        let text = format!(
            "user root;\ndaemon off;\nworker_processes 1;\npid {base}/pid;\nevents {{ worker_connections 512; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {base}/body;\n  proxy_temp_path {base}/proxy;\n  \
             fastcgi_temp_path {base}/fastcgi;\n  uwsgi_temp_path {base}/uwsgi;\n  scgi_temp_path {base}/scgi;\n{all}}}\n"
        );
        fs::write(dir.join("nginx.conf"), text).expect("writable");
    }
}
