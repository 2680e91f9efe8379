//! A control plane on the hub and apps on the hosts, each behind `weft run --transparent`.

use std::{fs, path::PathBuf, process::Command};

use super::lan::{HUB, Lan, ran};
use crate::{net::eventually, process::Process};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const XDS: &str = "10.77.0.254:15012";

/// Hosts with a control plane. What runs on them is stopped first.
pub struct Mesh {
    processes: Vec<Process>,
    pub lan: Lan,
    pub dir: PathBuf,
}

/// An app behind its sidecar.
pub struct App {
    pub process: Process,
    host: &'static str,
}

impl Mesh {
    /// Starts the control plane with these resources, of which each has a file.
    pub fn start(name: &str, resources: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("weft-it-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("resources")).expect("a directory");
        for (number, text) in resources.iter().enumerate() {
            fs::write(dir.join(format!("resources/{number}.yaml")), text).expect("writable");
        }
        let mut mesh = Self { processes: Vec::new(), lan: Lan::new(), dir };
        let mut command = mesh.lan.command(HUB, WEFT);
        command.args(["control-plane", "--dev", "--xds-listen", XDS, "--api-listen", "127.0.0.1:15014"]);
        command.arg("--data-dir").arg(mesh.dir.join("data")).arg("--resources").arg(mesh.dir.join("resources"));
        // Where sidecars of this machine would look for its token: it has the same port as those of other tests.
        command.env("XDG_RUNTIME_DIR", &mesh.dir);
        mesh.processes.push(Process::start(&mut command, &mesh.dir.join("control-plane.log")));
        eventually("the control plane", || match mesh.weft(&["get", "meshconfig"]) {
            (0, _) => Ok(()),
            (_, text) => Err(format!("{text}{}", mesh.processes[0].output())),
        });
        mesh
    }

    /// The development token.
    fn token(&self) -> PathBuf {
        self.dir.join("data/dev-token")
    }

    /// A command of an operator.
    pub fn weft(&self, args: &[&str]) -> (i32, String) {
        ran(self.lan.command(HUB, WEFT).args(args).env("WEFT_SERVER", "http://127.0.0.1:15014").current_dir(&self.dir))
    }

    /// Applies a resource, and waits until every sidecar has it.
    pub fn apply(&self, text: &str) {
        let file = self.dir.join("applied.yaml");
        fs::write(&file, text).expect("writable");
        let (code, text) = self.weft(&["apply", "--wait", "-f", &file.to_string_lossy()]);
        assert!(matches!(code, 0 | 3), "{text}");
    }

    /// `weft run` on a host, with these flags and this app.
    pub fn run_command(&self, host: &str, name: &str, flags: &[&str], app: &[&str]) -> Command {
        let mut command = self.lan.command(host, WEFT);
        let address = match host {
            "a" => "10.77.0.1",
            "b" => "10.77.0.2",
            _ => "10.77.0.3",
        };
        command.args(["run", "--name", name, "--xds", XDS, "--token"]).arg(self.token());
        if !flags.contains(&"--mesh-listen") {
            command.args(["--mesh-listen", &format!("{address}:0")]);
        }
        command.args(flags).arg("--").args(app).env("WEFT_LOG", "info,weft_sidecar=debug").current_dir(&self.dir);
        command
    }

    /// An app on a host. It starts when its sidecar is ready.
    pub fn app(&self, host: &'static str, name: &str, flags: &[&str], app: &[&str]) -> App {
        let flags = [&["--transparent"], flags].concat();
        let mut command = self.run_command(host, name, &flags, app);
        App { process: Process::start(&mut command, &self.dir.join(format!("{name}.log"))), host }
    }

    /// An app that serves; waits until callers may call it.
    pub fn service(&mut self, host: &'static str, name: &str, flags: &[&str], app: &[&str]) {
        let app = self.app(host, name, flags, app);
        eventually(&format!("an endpoint of {name}"), || {
            // It fails while there is no endpoint that takes calls.
            match self.weft(&["endpoints", name]) {
                (0, _) => Ok(()),
                (_, text) => Err(format!("{text}{}", app.process.output())),
            }
        });
        self.processes.push(app.process);
    }

    /// Runs a program as a part of an app.
    pub fn inside(&self, app: &App, line: &[&str]) -> (i32, String) {
        // The app enters by itself; who comes later does the same.
        let enter = "echo $$ > \"$0\" && exec \"$@\"";
        let procs = self.cgroup(app).join("cgroup.procs");
        let mut command = self.lan.command(app.host, "timeout");
        ran(command.args(["30", "sh", "-c", enter]).arg(procs).args(line))
    }

    /// Runs it and expects success; its output.
    pub fn ok(&self, app: &App, line: &[&str]) -> String {
        let (code, text) = self.inside(app, line);
        assert_eq!(code, 0, "{line:?}: {text}\nthe log: {}", app.process.output());
        text
    }

    /// The directory of the app's cgroup, once it is there.
    fn cgroup(&self, app: &App) -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").expect("Linux");
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let mount = mount.expect("cgroup v2");
        eventually("the app", || {
            let inside = app.process.below().into_iter().find_map(|pid| {
                let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
                let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
                path.contains("weft-run-").then(|| mount.join(path))
            });
            inside.ok_or_else(|| app.process.output())
        })
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.processes.clear();
        // They were killed: what that leaves goes now.
        let _ = self.lan.run(HUB, &[WEFT, "redirect", "remove"]);
        if std::thread::panicking() {
            eprintln!("the logs are kept in {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
