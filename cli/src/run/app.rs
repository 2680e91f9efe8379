//! The app as a child process: its environment, its end with ours, its exit code.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{ExitCode, ExitStatus},
};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use super::sidecar::Listening;
use crate::args::{RunArgs, Upstream};

/// What systemd tells the process that it started, and nobody else.
const OURS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Arguments of the hidden `weft app`.
#[derive(clap::Args, Clone, Debug)]
pub struct AppArgs {
    /// Process without which the app is not to be
    #[arg(long)]
    pub parent: i32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Starts the app, by way of this program, which becomes it ([`become_app`]). It stays in our process group, so that a
/// shell's job control and the terminal's keys mean both.
pub fn start(command: &[OsString], environment: BTreeMap<String, String>) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("path of this program: unknown")?;
    let mut start = Command::new(program);
    start.arg("app").arg("--parent").arg(std::process::id().to_string()).arg("--").args(command);
    without_ours(&mut start);
    start.envs(environment).spawn().context("start the app")
}

/// What is for us alone goes no further.
pub fn without_ours(command: &mut Command) {
    OURS.iter().for_each(|name| {
        command.env_remove(name);
    });
}

/// The program that was asked for is there and can be run; the reason if not, before anything is started.
pub fn find(command: &[OsString]) -> anyhow::Result<()> {
    let program = command.first().context("no app given; put it behind `--`")?;
    let is_program = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let path = Path::new(program);
    let found = match path.components().count() {
        1 => {
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| is_program(&dir.join(path)))
        }
        _ => is_program(path),
    };
    if found {
        return Ok(());
    }
    bail!("start the app: {}: no such program; is it in PATH, and may it be executed", path.display())
}

/// Becomes the app. If the process that started it is killed, so is this one, for nothing would stop it then.
pub fn become_app(args: &AppArgs) -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        eprintln!("weft run: the app will outlive a killed weft run: {error}");
    }
    // It may have been killed before that.
    if rustix::process::getppid().is_none_or(|now| now.as_raw_nonzero().get() != args.parent) {
        return ExitCode::FAILURE;
    }
    let Some((program, arguments)) = args.command.split_first() else { return ExitCode::FAILURE };
    let error = std::process::Command::new(program).args(arguments).exec();
    eprintln!("weft run: start the app: {}: {error}", program.display());
    // As shells say it.
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

/// What the app finds in its environment beside what we have.
pub fn environment(args: &RunArgs, listening: &Listening) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::from([
        ("WEFT_ADMIN".to_owned(), listening.admin.clone()),
        ("WEFT_OUTBOUND".to_owned(), listening.outbound.clone()),
    ]);
    for upstream in &args.upstream {
        let address = format!("127.0.0.1:{}", upstream.local_port);
        for name in names(upstream) {
            // The first keeps the short name.
            variables.entry(name).or_insert_with(|| address.clone());
        }
    }
    variables
}

/// The names of an upstream, by what its flag says: service, service and port, service and namespace, all three.
fn names(upstream: &Upstream) -> Vec<String> {
    let port = upstream.port.map(|port| format!("_{port}"));
    let namespace = upstream.namespace.as_ref().map(|namespace| format!("_{namespace}"));
    let mut ends = vec![String::new()];
    ends.extend(port.clone());
    ends.extend(namespace.clone());
    ends.extend(namespace.zip(port).map(|(namespace, port)| namespace + &port));
    let name = |end| format!("WEFT_UPSTREAM_{}{end}", upstream.service).to_ascii_uppercase().replace('-', "_");
    ends.into_iter().map(name).collect()
}

/// The app's own code, 128 + n when signal n ended it.
pub fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map_or(1, |signal| 128 + signal);
    u8::try_from(status.code().unwrap_or_else(signal)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_apps_or_128_and_the_signal() {
        for (raw, expected) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(code(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }

    #[test]
    fn two_upstreams_of_a_service_have_names_of_their_own_and_the_first_keeps_the_short_one() {
        use clap::Parser as _;
        let line = "weft run --name web --upstream pay-ments.shop:80=9001 --upstream pay-ments:81=9002 --upstream a=9003 -- app";
        let crate::args::Command::Run(args) = crate::args::Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("not run")
        };
        let listening = Listening {
            admin: "127.0.0.1:1".into(),
            outbound: "127.0.0.1:2".into(),
            mesh: String::new(),
            redirect: None,
        };
        let environment = environment(&args, &listening);
        let expected = [
            ("WEFT_ADMIN", "127.0.0.1:1"),
            ("WEFT_OUTBOUND", "127.0.0.1:2"),
            ("WEFT_UPSTREAM_A", "127.0.0.1:9003"),
            ("WEFT_UPSTREAM_PAY_MENTS", "127.0.0.1:9001"),
            ("WEFT_UPSTREAM_PAY_MENTS_80", "127.0.0.1:9001"),
            ("WEFT_UPSTREAM_PAY_MENTS_81", "127.0.0.1:9002"),
            ("WEFT_UPSTREAM_PAY_MENTS_SHOP", "127.0.0.1:9001"),
            ("WEFT_UPSTREAM_PAY_MENTS_SHOP_80", "127.0.0.1:9001"),
        ];
        let found: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_before_anything_is_started() {
        let find = |program: &str| find(&[program.into()]);
        assert!(find("sh").is_ok() && find("/bin/sh").is_ok());
        for wrong in ["no-such-program", "/bin", "/etc/passwd", "./sh"] {
            assert!(find(wrong).unwrap_err().to_string().contains("is it in PATH"), "{wrong}");
        }
    }
}
