//! Running nft: a script as one transaction, and the names of our tables.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Tables of `weft run`, which go with it. Names of instances have no dots.
pub const OF_RUN: &str = "weft.run.";
/// Tables of `weft redirect install`, which stay until they are removed.
pub const INSTALLED: &str = "weft.";

/// Makes what the script says so, or nothing of it.
pub fn apply(script: &str) -> anyhow::Result<()> {
    fed(&["-f", "-"], script)
}

/// Whether the script could be applied; nothing of it is.
pub fn try_out(script: &str) -> anyhow::Result<()> {
    fed(&["-c", "-f", "-"], script)
}

fn fed(arguments: &[&str], script: &str) -> anyhow::Result<()> {
    let mut nft = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    let mut input = nft.stdin.take().context("nft: no input")?;
    // When nft ends early it says why, and not that our pipe is closed.
    let written = input.write_all(script.as_bytes());
    drop(input);
    let output = nft.wait_with_output().context("wait for nft")?;
    if !output.status.success() {
        bail!("nft refused the rules ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("write to nft")
}

/// Removes a table. There being none is as good.
pub fn remove(table: &str) -> anyhow::Result<()> {
    // Declared first, it is there in any case.
    apply(&format!("table inet {table}\ndelete table inet {table}\n"))
}

/// Names of the tables that are ours, in order.
pub fn tables() -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        table: Option<Table>,
    }
    #[derive(Deserialize)]
    struct Table {
        family: String,
        name: String,
    }
    let output = command(&["-j", "list", "tables"]).output().map_err(missing)?;
    if !output.status.success() {
        bail!("nft cannot list tables ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let listing: Listing = serde_json::from_slice(&output.stdout).context("nft's list of tables: not as expected")?;
    let tables = listing.nftables.into_iter().filter_map(|item| item.table);
    let ours = tables.filter(|table| table.family == "inet" && table.name.starts_with(INSTALLED));
    let mut names: Vec<_> = ours.map(|table| table.name).collect();
    names.sort();
    Ok(names)
}

/// The rules of a table, as nft writes them.
pub fn list(table: &str) -> anyhow::Result<String> {
    let output = command(&["list", "table", "inet", table]).output().map_err(missing)?;
    if !output.status.success() {
        bail!("nft cannot list table {table}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("nft");
    command.args(arguments);
    command
}

fn missing(error: std::io::Error) -> anyhow::Error {
    let hint = "install the package nftables, and see that its directory (/usr/sbin) is in PATH";
    anyhow::Error::new(error).context(format!("nft cannot be started; {hint}"))
}
