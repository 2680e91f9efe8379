//! `weft`, the operator and developer command: parses, dispatches, turns the outcome into an exit code
//! (0 ok, 1 failed, 2 usage, 3 warnings).

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

mod args;
mod client;
mod demo;
mod embedded;
mod run;
mod services;
mod status;

use args::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    dispatch(cli.command).unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
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
        command => {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
                match command {
                    Command::ControlPlane(args) => Box::pin(embedded::control_plane(args)).await,
                    Command::Demo(args) => Box::pin(demo::run(args)).await,
                    Command::DemoService(args) => Box::pin(services::run(args)).await,
                    Command::Run(args) => Box::pin(run::run(args)).await,
                    Command::Status(args) => status::run(&args).await,
                    Command::Completions { .. } | Command::Sidecar(_) => Ok(ExitCode::SUCCESS),
                }
            })
        }
    }
}
