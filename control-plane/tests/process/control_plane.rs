//! A running control plane with `--dev`: where it listens, and its end.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use crate::http::{Client, Reply};

/// What takes longer does not happen at all.
pub const LIMIT: Duration = Duration::from_secs(60);
const UP: &str = "control plane is up";

/// The process. It is killed with the value.
pub struct ControlPlane {
    child: Child,
    /// The operator API.
    pub api: SocketAddr,
    /// Discovery.
    pub xds: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// The command with this data directory; `runtime` is where it puts its development token.
pub fn command(data: &Path, runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-control-plane"));
    arguments(&mut command, data, runtime);
    command
}

/// What the command needs to be told.
pub fn arguments(command: &mut Command, data: &Path, runtime: &Path) {
    command.env("NO_COLOR", "1").env("XDG_RUNTIME_DIR", runtime).arg("--data-dir").arg(data);
    command.args(["--dev", "--api-listen", "127.0.0.1:0", "--xds-listen", "127.0.0.1:0"]);
}

impl ControlPlane {
    /// Starts it and waits until it is up.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the control plane starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let (sender, up) = mpsc::channel();
        let log = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines {
                let mut log = kept.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
                if line.contains(UP) {
                    let _ = sender.send(line);
                }
            }
        });
        let nowhere = ([0, 0, 0, 0], 0).into();
        let mut started = Self { child, api: nowhere, xds: nowhere, log };
        let line = up.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("{error}: {}", started.log()));
        (started.api, started.xds) = (address(&line, "api="), address(&line, "xds="));
        started
    }

    /// Starts it and waits until it serves: how long that took from the start of the process.
    pub fn start_serving(command: &mut Command) -> (Self, Duration) {
        let from = Instant::now();
        let started = Self::start(command);
        assert_eq!(started.get("/readyz").code, 200, "{}", started.log());
        (started, from.elapsed())
    }

    /// What it has written.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("a child");
    }

    /// A connection of its own to the operator API.
    pub fn client(&self) -> Client {
        Client::connect(self.api).unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }

    /// One GET.
    pub fn get(&self, path: &str) -> Reply {
        self.client().send("GET", path, "").unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(line: &str, name: &str) -> SocketAddr {
    let rest = line.split_once(name).unwrap_or_else(|| panic!("{line}")).1;
    rest.split_whitespace().next().unwrap_or_default().parse().unwrap_or_else(|error| panic!("{error}: {line}"))
}
