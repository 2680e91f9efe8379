//! `weft certs rotate`: another issuing certificate, and another root in three phases, one by one or all in a row.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::ca::{CA, names, print, some};
use crate::{
    args,
    listing::{Output, number, text},
    server::{Call, CallError, Server, ServerArgs},
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);

/// Flags of `weft certs rotate`.
#[derive(Args, Clone, Debug)]
pub struct RotateArgs {
    /// What to change.
    #[command(subcommand)]
    pub command: RotateCommand,
}

/// What can be changed.
#[derive(Clone, Debug, Subcommand)]
pub enum RotateCommand {
    /// Make another issuing certificate under the same root; sidecars renew soon
    Issuer(IssuerArgs),
    /// Change the root while everything goes on
    Root(RootArgs),
}

/// Flags that every step has.
#[derive(Args, Clone, Debug)]
pub struct StepArgs {
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Form of the listing of the authority afterwards
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `weft certs rotate issuer`.
#[derive(Args, Clone, Debug)]
pub struct IssuerArgs {
    #[command(flatten)]
    pub step: StepArgs,
}

/// Flags of `weft certs rotate root`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The phases: prepare makes the new root, which is trusted beside the old one; switch lets it issue, \
    and sidecars renew; finish drops the old root. Each waits for nobody: it is refused while a connected sidecar would be \
    cut off by it. --all takes one after the other and waits in between; it goes on from the phase that it finds."
)]
pub struct RootArgs {
    /// One step
    #[arg(value_enum, required_unless_present = "all")]
    pub phase: Option<PhaseStep>,
    /// All steps, with waiting in between
    #[arg(long, conflicts_with_all = ["phase", "force"])]
    pub all: bool,
    /// Take the step although connected sidecars would be cut off by it
    #[arg(long)]
    pub force: bool,
    /// With --all: how long the sidecars have
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = args::any_duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub step: StepArgs,
}

/// A step of a change of the root.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum PhaseStep {
    /// Make a new root, which is trusted beside the old one
    Prepare,
    /// Let the new root issue; sidecars renew soon
    Switch,
    /// Trust the old root no more
    Finish,
    /// Go one phase back: from switch to prepare, from prepare to the old root alone
    Rollback,
}

/// Does it.
pub async fn run(args: RotateArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        RotateCommand::Issuer(args) => {
            let server = Server::new(&args.step.server).await?;
            let state = step(&server, "issuer", false, &args.step.reason).await?;
            print(args.step.output, &state);
            Ok(server.exit_code())
        }
        RotateCommand::Root(args) => {
            let server = Server::new(&args.step.server).await?;
            let state = match args.phase {
                Some(phase) => {
                    if phase == PhaseStep::Finish {
                        warn_of_finish();
                    }
                    step(&server, word(phase), args.force, &args.step.reason).await?
                }
                None => all(&server, args.timeout, &args.step.reason).await?,
            };
            print(args.step.output, &state);
            Ok(server.exit_code())
        }
    }
}

/// A withdrawn root ends what depends on it, whatever it was withdrawn for: sidecars cannot know a rotation from a theft.
fn warn_of_finish() {
    anstream::eprintln!(
        "note: streams, tunnels and requests that are still open from before their sidecars renewed end within 5 s of this \
         step"
    );
}

fn word(phase: PhaseStep) -> &'static str {
    match phase {
        PhaseStep::Prepare => "root-prepare",
        PhaseStep::Switch => "root-switch",
        PhaseStep::Finish => "root-finish",
        PhaseStep::Rollback => "root-rollback",
    }
}

async fn step(server: &Server, step: &str, force: bool, reason: &str) -> Result<Value, CallError> {
    let body = json!({ "step": step, "force": force, "reason": reason });
    server.call(Call::new(Method::POST, format!("{CA}/rotation")).body(&body)).await
}

/// Takes the steps that are left, each when all sidecars are ready for it.
async fn all(server: &Server, timeout: Duration, reason: &str) -> anyhow::Result<Value> {
    let deadline = Instant::now() + timeout;
    let mut state = server.get(CA).await?;
    if state["phase"] == "stable" {
        state = step(server, "root-prepare", false, reason).await?;
        anstream::eprintln!("prepared: the new root is trusted beside the old one");
    }
    if state["phase"] == "prepared" {
        state = when_ready(server, "root-switch", reason, deadline).await?;
        anstream::eprintln!("switched: the new root's issuer issues");
    }
    if state["phase"] == "switched" {
        warn_of_finish();
        state = when_ready(server, "root-finish", reason, deadline).await?;
        anstream::eprintln!("finished: the old root is trusted no more");
    }
    Ok(state)
}

/// Who is waited for before a step, and for what.
fn waiting(state: &Value, next: &str) -> (Vec<String>, &'static str) {
    match next {
        "root-switch" => (names(&state["waiting"]["unacknowledged"]), "acknowledge both roots"),
        _ => (names(&state["waiting"]["otherRoot"]), "renew their certificates"),
    }
}

async fn when_ready(server: &Server, next: &str, reason: &str, deadline: Instant) -> anyhow::Result<Value> {
    let mut told = None;
    loop {
        let state = server.get(CA).await?;
        let (names, what) = waiting(&state, next);
        if names.is_empty() {
            match step(server, next, false, reason).await {
                // Somebody came between the look and the step.
                Err(error) if error.code() == Some(409) && Instant::now() < deadline => {}
                result => return Ok(result?),
            }
        } else if told != Some(names.len()) {
            told = Some(names.len());
            anstream::eprintln!("waiting for {} to {what}: {}", number(names.len(), "sidecar"), some(&names));
        }
        if Instant::now() >= deadline {
            bail!(
                "in phase {}, still waiting for {}: go on with weft certs rotate root --all, or back with weft certs \
                 rotate root rollback",
                text(&state, "phase"),
                some(&names)
            );
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn a_step_or_all_of_them_and_not_both() {
        let parses = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        for line in ["issuer", "root prepare", "root switch --force", "root finish", "root rollback", "root --all"] {
            assert!(parses(&format!("weft certs rotate {line}")), "{line}");
        }
        for line in ["root", "root --all --force", "root --all prepare", "root stable", "issuer --force"] {
            assert!(!parses(&format!("weft certs rotate {line}")), "{line}");
        }
    }

    #[test]
    fn a_switch_waits_for_acknowledgements_and_a_finish_for_renewals() {
        let state = json!({"waiting": {"unacknowledged": ["a"], "otherRoot": ["b", "c"]}});
        assert_eq!(waiting(&state, "root-switch").0, ["a"]);
        assert_eq!(waiting(&state, "root-finish").0, ["b", "c"]);
    }
}
