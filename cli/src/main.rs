//! `weft`, the operator and developer command: parses, dispatches, turns the outcome into an exit code
//! (0 ok, 1 failed, 2 usage, 3 warnings).

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

mod analyze;
mod apply;
mod args;
mod certs;
mod check;
mod client;
mod conflicts;
mod delete;
mod demo;
mod describe;
mod diff;
mod drain;
mod edit;
mod embedded;
mod endpoints;
mod explain;
mod get;
mod history;
mod inject;
mod install;
mod kinds;
mod listing;
mod merge;
mod numbers;
mod objects;
mod problems;
mod ready;
mod redirect;
mod run;
mod server;
mod services;
mod stat;
mod status;
mod style;
mod table;
mod tap;
mod targets;
mod token;
mod top;
mod trace;
mod wait;
mod yaml;

use args::{Cli, Command};

#[cfg(test)]
mod tests;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    dispatch(cli.command).unwrap_or_else(|error| {
        style::fail(&format!("{error:#}"));
        ExitCode::from(1)
    })
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        // The sidecar builds its own threads and runtimes.
        Command::Sidecar(args) => embedded::sidecar(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Analyze(args) => analyze::run(&args),
        Command::App(args) => Ok(run::become_app(&args)),
        Command::EnterCgroup(args) => run::enter_cgroup(&args),
        Command::Inject(args) => inject::inject(&args),
        Command::Install(args) => install::run(&args),
        Command::Uninject(args) => inject::uninject(&args),
        command => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(Box::pin(served(command)))
        }
    }
}

/// The commands that talk to somebody.
async fn served(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Apply(args) => Box::pin(apply::run(args)).await,
        Command::Certs(args) => Box::pin(certs::run(args)).await,
        Command::Check(args) => Box::pin(check::run(args)).await,
        Command::Config(args) => certs::config(args).await,
        Command::ControlPlane(args) => Box::pin(embedded::control_plane(args)).await,
        Command::Delete(args) => Box::pin(delete::run(args)).await,
        Command::Demo(args) => Box::pin(demo::run(args)).await,
        Command::DemoService(args) => Box::pin(services::run(args)).await,
        Command::Describe(args) => Box::pin(describe::run(args)).await,
        Command::Diff(args) => Box::pin(diff::run(args)).await,
        Command::Drain(args) => drain::run(args).await,
        Command::Edges(args) => stat::edges(args).await,
        Command::Edit(args) => Box::pin(edit::run(args)).await,
        Command::Endpoints(args) => endpoints::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Get(args) => Box::pin(get::run(args)).await,
        Command::History(args) => Box::pin(history::run(args)).await,
        Command::Ready(args) => ready::run(args).await,
        Command::Redirect(args) => redirect::run(args).await,
        Command::Rollback(args) => history::rollback(args).await,
        Command::Run(args) => Box::pin(run::run(args)).await,
        Command::Stat(args) => stat::run(args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Tap(args) => Box::pin(tap::run(args)).await,
        Command::Token(args) => token::run(args).await,
        Command::Top(args) => Box::pin(top::run(args)).await,
        Command::Trace(args) => trace::run(args).await,
        Command::Analyze(_)
        | Command::App(_)
        | Command::Completions { .. }
        | Command::EnterCgroup(_)
        | Command::Inject(_)
        | Command::Install(_)
        | Command::Sidecar(_)
        | Command::Uninject(_) => Ok(ExitCode::SUCCESS),
    }
}
