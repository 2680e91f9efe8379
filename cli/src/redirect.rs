//! `weft redirect`: traffic of this machine, or network namespace, to a sidecar, by rules of nftables. `weft run
//! --transparent` uses the same parts for one app.

pub mod cgroup;
pub mod nft;
pub mod owner;
pub mod rules;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use rustix::process::geteuid;

use self::{
    cgroup::Parent,
    rules::{App, Cidr, Exclude, Ports, Rules, User},
};
use crate::run::Signals;

/// `weft redirect`.
#[derive(Args, Debug)]
pub struct RedirectArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Redirect to a sidecar that runs with --transparent and --mark; what was installed under the name is replaced
    Install(InstallArgs),
    /// Remove the rules of a name, and rests of `weft run --transparent` that was killed; nothing there is no error
    Remove(RemoveArgs),
    /// Show which rules are there; exit code 3 when some are rests
    Status(StatusArgs),
    /// Do nothing until SIGTERM or SIGINT: keeps a network namespace that containers share
    Hold,
}

#[derive(Args, Debug)]
struct InstallArgs {
    /// Name of the rules, lower-case letters, digits and '-'
    #[arg(long, default_value = "sidecar", value_parser = name)]
    name: String,
    /// Where the sidecar takes calls of the app
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: u16,
    /// Where the sidecar takes DNS of the app [default: DNS is left alone]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    dns_port: Option<u16>,
    /// Where the sidecar takes calls to a port of the app
    #[arg(long, value_name = "APPPORT=PORT", value_parser = pair)]
    inbound_port: Vec<(u16, u16)>,
    /// Where the sidecar takes calls from outside to all other ports [default: they are left alone]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), conflicts_with_all = ["cgroup", "user"])]
    inbound_rest: Option<u16>,
    /// The sidecar's --mark: its own traffic is left alone
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    mark: u32,
    /// Only calls of processes in this cgroup, a path below /sys/fs/cgroup [default: of all]
    #[arg(long, value_name = "PATH", conflicts_with = "user")]
    cgroup: Option<String>,
    /// Only calls of this user, by name or number [default: of all]
    #[arg(long)]
    user: Vec<User>,
    #[command(flatten)]
    exclude: ExcludeArgs,
    /// Print the rules and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Stay until SIGTERM or SIGINT, and remove the rules then: keeps a network namespace that containers share
    #[arg(long, conflicts_with = "dry_run")]
    hold: bool,
}

/// What is left alone.
#[derive(Args, Clone, Debug, Default)]
pub struct ExcludeArgs {
    /// Leave calls to this port alone
    #[arg(long, value_name = "PORT")]
    exclude_outbound_port: Vec<u16>,
    /// Leave calls to this network alone, DNS too
    #[arg(long, value_name = "CIDR")]
    exclude_outbound_cidr: Vec<Cidr>,
    /// Leave calls from outside to this port of the app alone: they reach it without the mesh and its policies
    #[arg(long, value_name = "PORT")]
    exclude_inbound_port: Vec<u16>,
    /// Leave calls of this user alone, by name or number
    #[arg(long, value_name = "USER")]
    exclude_user: Vec<User>,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// Name of the rules
    #[arg(long, default_value = "sidecar", value_parser = name)]
    name: String,
}

#[derive(Args, Debug)]
struct StatusArgs {
    /// Form of the list
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Show the rules too
    #[arg(long)]
    rules: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    Json,
    Name,
    Table,
}

impl From<ExcludeArgs> for Exclude {
    fn from(args: ExcludeArgs) -> Self {
        Self {
            outbound_ports: args.exclude_outbound_port,
            outbound_cidrs: args.exclude_outbound_cidr,
            inbound_ports: args.exclude_inbound_port,
            users: args.exclude_user,
        }
    }
}

/// Runs it.
pub async fn run(args: RedirectArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Install(args) => install(args).await,
        Command::Hold => hold().await.map(|()| ExitCode::SUCCESS),
        Command::Remove(args) => remove(&args),
        Command::Status(args) => status(&args),
    }
}

/// Whether this process may change rules.
///
/// # Errors
/// What is missing, before anything is changed.
pub fn check(what: &str) -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("{what} needs Linux");
    }
    if !geteuid().is_root() {
        bail!(
            "{what} changes rules of the network and needs root; without it, use weft run --upstream and $WEFT_OUTBOUND"
        );
    }
    nft::tables().map(|_| ()).with_context(|| format!("{what} needs nftables"))
}

/// Removes tables of `weft run` whose process is gone. What cannot be removed stays for the next start.
pub fn clean() {
    for table in stale().unwrap_or_default() {
        if let Err(error) = nft::remove(&table) {
            eprintln!("weft: rules of an earlier run stay: {error:#}");
        }
    }
}

fn stale() -> anyhow::Result<Vec<String>> {
    Ok(nft::tables()?.into_iter().filter(|table| table.starts_with(nft::OF_RUN) && !owner::is_held(table)).collect())
}

/// Waits for a signal that ends this process. As the first process of a container it gets none that it does not take.
async fn hold() -> anyhow::Result<()> {
    Signals::new()?.next_end().await;
    Ok(())
}

async fn install(args: InstallArgs) -> anyhow::Result<ExitCode> {
    let app = match (args.cgroup, args.user) {
        (Some(path), _) => {
            let path = path.trim_matches('/').to_owned();
            if path.is_empty() || path.contains(['"', '\\', '\n']) {
                bail!("--cgroup {path:?}: expected a path below /sys/fs/cgroup");
            }
            // Beside version 1, version 2 is mounted at a directory of its own, which is no level.
            let level = path.strip_prefix("unified/").unwrap_or(&path).split('/').count();
            App::Cgroup { path, level }
        }
        (None, users) if users.is_empty() => App::Everybody,
        (None, users) => App::Users(users),
    };
    let inbound = args.inbound_port.into_iter().collect();
    let ports = Ports { outbound: args.outbound_port, dns: args.dns_port, inbound, rest: args.inbound_rest };
    let table = format!("{}{}", nft::INSTALLED, args.name);
    let rules = Rules { table, app, ports, mark: args.mark, exclude: args.exclude.into() };
    if args.dry_run {
        print!("{}", rules.script());
        return Ok(ExitCode::SUCCESS);
    }
    check("weft redirect install")?;
    nft::apply(&rules.script())?;
    println!("table {} installed", rules.table);
    if args.hold {
        hold().await?;
        nft::remove(&rules.table)?;
        println!("table {} removed", rules.table);
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    check("weft redirect remove")?;
    let table = format!("{}{}", nft::INSTALLED, args.name);
    let mut gone: Vec<String> = nft::tables()?.into_iter().filter(|known| *known == table).collect();
    gone.extend(stale()?);
    // The processes before the rules that keep them in the mesh.
    if let Ok(parent) = Parent::find() {
        parent.clean();
    }
    for table in &gone {
        nft::remove(table)?;
        println!("table {table} removed");
    }
    if gone.is_empty() {
        println!("there is no table {table}");
    }
    Ok(ExitCode::SUCCESS)
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    check("weft redirect status")?;
    let state = |table: &str| match table.starts_with(nft::OF_RUN) {
        false => "installed",
        true if owner::is_held(table) => "running",
        true => "rest",
    };
    let tables: Vec<_> = nft::tables()?.into_iter().map(|table| (state(&table), table)).collect();
    match args.output {
        Output::Name => tables.iter().for_each(|(_, table)| println!("{table}")),
        Output::Json => {
            let rows: Vec<_> =
                tables.iter().map(|(state, table)| serde_json::json!({ "table": table, "state": state })).collect();
            println!("{}", serde_json::to_string_pretty(&rows)?);
        }
        Output::Table if tables.is_empty() => println!("nothing is redirected"),
        Output::Table => {
            let width = tables.iter().map(|(_, table)| table.len()).max().unwrap_or(0);
            println!("{:width$}  STATE", "TABLE");
            tables.iter().for_each(|(state, table)| println!("{table:width$}  {state}"));
        }
    }
    if args.rules {
        for (_, table) in &tables {
            print!("\n{}", nft::list(table)?);
        }
    }
    let rests = tables.iter().any(|(state, _)| *state == "rest");
    if rests {
        eprintln!(
            "rests are of runs that were killed; the next weft run --transparent, or weft redirect remove, removes them"
        );
    }
    Ok(ExitCode::from(if rests { 3 } else { 0 }))
}

fn name(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 63 || !text.chars().all(letter) {
        return Err("expected 1 to 63 lower-case letters, digits and '-'".to_owned());
    }
    Ok(text.to_owned())
}

fn pair(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (app, front) = text.split_once('=').ok_or("expected APPPORT=PORT")?;
    Ok((
        port(app).ok_or_else(|| format!("port {app:?}: must be 1 to 65535"))?,
        port(front).ok_or_else(|| format!("port {front:?}: must be 1 to 65535"))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ports_are_checked() {
        assert_eq!(pair("80=18080"), Ok((80, 18080)));
        for wrong in ["80", "80=", "0=1", "a=1", "1=65536"] {
            assert!(pair(wrong).is_err(), "{wrong}");
        }
        assert_eq!(name("web-1"), Ok("web-1".to_owned()));
        for wrong in ["", "Web", "a.b", "a b", "a}"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
