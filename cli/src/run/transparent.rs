//! `weft run --transparent`: what it takes around the sidecar and the app. The app lives in a cgroup of its own, by which
//! rules of nftables know its traffic; all of it goes when this is dropped, and rests of runs that were killed go before
//! anything is made.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::sidecar::Redirect;
use crate::{
    args::{EnterArgs, RunArgs},
    redirect::{
        self,
        cgroup::{Cgroup, Parent},
        nft::{self, OF_RUN},
        owner::{self, Claim},
        rules::{Exclude, Ports, Rules},
    },
};

/// What is ready before the sidecar is started.
pub struct Prepared {
    cgroup: Cgroup,
    table: String,
    mark: u32,
    exclude: Exclude,
    _claims: [Claim; 2],
}

/// Rules that are in force.
pub struct Redirected {
    prepared: Prepared,
}

impl Prepared {
    /// Checks that everything needed is here, and makes room; the rules come later.
    pub fn new(args: &RunArgs, instance: &str) -> anyhow::Result<Self> {
        redirect::check("--transparent")?;
        let parent = Parent::find()?;
        // The processes before the rules that keep them in the mesh.
        parent.clean();
        redirect::clean();
        let table = format!("{OF_RUN}{instance}");
        let owner = owner::claim(&table)?;
        let (mark, marked) = owner::mark()?;
        let cgroup = parent.make(instance)?;
        Ok(Self { cgroup, table, mark, exclude: args.exclude.clone().into(), _claims: [owner, marked] })
    }

    /// Flags of the sidecar; `ports` are those of an earlier start.
    pub fn flags(&self, ports: Option<&Redirect>) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec!["--transparent".into(), "--mark".into(), self.mark.to_string().into()];
        if let Some(ports) = ports {
            let inbound = ports.inbound.iter().map(|(port, front)| format!(",{port}={front}"));
            let fixed = format!("outbound={},dns={}{}", ports.outbound, ports.dns, inbound.collect::<String>());
            flags.extend(["--redirect-ports".into(), fixed.into()]);
        }
        flags
    }

    /// Puts the rules in force.
    pub fn redirect(self, ports: &Redirect) -> anyhow::Result<Redirected> {
        let rules = Rules {
            table: self.table.clone(),
            app: self.cgroup.app().clone(),
            ports: Ports {
                outbound: ports.outbound,
                dns: Some(ports.dns),
                inbound: ports.inbound.iter().copied().collect(),
                // Other ports of this machine are other programs'.
                rest: None,
            },
            mark: self.mark,
            exclude: self.exclude.clone(),
        };
        nft::apply(&rules.script())?;
        Ok(Redirected { prepared: self })
    }
}

impl Redirected {
    /// The command line that starts the app inside: this program enters the cgroup and becomes the app.
    pub fn command(&self, app: &[OsString]) -> anyhow::Result<Vec<OsString>> {
        let this = std::env::current_exe().context("path of this program: unknown")?;
        let mut line = vec![this.into(), "enter-cgroup".into(), self.prepared.cgroup.dir().into(), "--".into()];
        line.extend_from_slice(app);
        Ok(line)
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        // First what the app has left running, then the rules: without them it would go on past the mesh.
        self.prepared.cgroup.empty();
        if let Err(error) = nft::remove(&self.prepared.table) {
            eprintln!("weft run: the rules stay, the next start removes them: {error:#}");
        }
    }
}

/// The hidden command: enters a cgroup and becomes the app. The app ends with the process that started it: without that
/// nobody would remove its rules.
pub fn enter(args: &EnterArgs) -> anyhow::Result<ExitCode> {
    let parent = rustix::process::getppid();
    end_with_parent()?;
    if rustix::process::getppid() != parent {
        bail!("whoever started this is gone");
    }
    enter_cgroup(&args.cgroup)?;
    let (program, arguments) = args.command.split_first().context("no app given")?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("start the app: {}: failed; is it in PATH", program.display()))
}

fn enter_cgroup(dir: &Path) -> anyhow::Result<()> {
    // 0 is the writing process.
    std::fs::write(dir.join("cgroup.procs"), "0").with_context(|| format!("enter cgroup {}", dir.display()))
}

#[cfg(target_os = "linux")]
fn end_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("end with the process that started this")
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> anyhow::Result<()> {
    let _ = Signal::TERM;
    bail!("this needs Linux")
}
