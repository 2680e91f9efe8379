//! `weft get`: objects as the server's tables, or themselves.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use crate::{
    kinds::Kinds,
    listing::{self, Output},
    server::{Call, Server, ServerArgs, with_query},
    table::Table,
    targets::{self, ScopeArgs, Target},
};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Flags of `weft get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// KIND[,KIND], KIND NAME..., KIND/NAME..., or a set of kinds such as all and weft
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub what: Vec<String>,
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the listing.
pub async fn run(args: GetArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let kinds = Kinds::discover(&server).await?;
    let targets = targets::parse(&kinds, &args.what)?;
    match args.output {
        Output::Table | Output::Wide => tables(&server, &args, &targets).await?,
        Output::Json | Output::Name | Output::Yaml => objects(&server, &args, &targets).await?,
    }
    Ok(server.exit_code())
}

async fn tables(server: &Server, args: &GetArgs, targets: &[Target]) -> anyhow::Result<()> {
    let wide = args.output == Output::Wide;
    let kinds: std::collections::BTreeSet<&str> = targets.iter().map(|target| target.kind.kind.as_str()).collect();
    let mut tables: Vec<(Target, Value)> = Vec::new();
    for target in targets {
        let table = table(server, args, target).await?;
        // The rows of several names of one kind go under one heading.
        match tables.last_mut().filter(|(last, _)| last.kind == target.kind) {
            Some((_, last)) => append(last, table),
            None => tables.push((target.clone(), table)),
        }
    }
    let mut printed = false;
    for (target, table) in &tables {
        let namespace = args.scope.all_namespaces && target.kind.namespaced;
        let prefix = target.kind.shown("");
        let prefix = (kinds.len() > 1).then(|| prefix.trim_end_matches('/'));
        let table = Table::from_api(table, wide, namespace, prefix);
        if !table.is_empty() {
            if printed {
                anstream::println!();
            }
            table.print();
            printed = true;
        }
    }
    if !printed {
        let namespaced = targets.iter().any(|target| target.kind.namespaced);
        let place = args
            .scope
            .namespace()
            .filter(|_| namespaced)
            .map_or(String::new(), |namespace| format!(" in namespace {namespace:?}"));
        anstream::eprintln!("nothing found{place}");
    }
    Ok(())
}

fn append(table: &mut Value, mut more: Value) {
    if let (Some(rows), Some(more)) = (table["rows"].as_array_mut(), more["rows"].as_array_mut()) {
        rows.append(more);
    }
}

async fn table(server: &Server, args: &GetArgs, target: &Target) -> anyhow::Result<Value> {
    let (kind, namespace) = (&target.kind, args.scope.namespace());
    let answer = match &target.name {
        Some(name) => {
            let namespace = namespace.unwrap_or("default");
            let path = kind.path(Some(namespace), Some(name));
            match server.call(Call::new(Method::GET, path).accept(TABLE)).await {
                Ok(answer) => answer,
                Err(error) => return Err(targets::explained(server, kind, namespace, name, error).await),
            }
        }
        None => {
            let selector = [("labelSelector", args.scope.selector.as_deref())];
            let path = with_query(&kind.path(namespace, None), &selector);
            server.call(Call::new(Method::GET, path).accept(TABLE)).await?
        }
    };
    Ok(if answer["kind"] == "Table" { answer } else { plain(&answer) })
}

/// A table of names, for a server that makes none.
fn plain(answer: &Value) -> Value {
    let rows: Vec<Value> = match answer["items"].as_array() {
        Some(items) => items.iter().map(plain_row).collect(),
        None => vec![plain_row(answer)],
    };
    json!({ "columnDefinitions": [{"name": "Name"}, {"name": "Created"}], "rows": rows })
}

fn plain_row(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({ "cells": [metadata["name"], metadata["creationTimestamp"]], "object": {"metadata": metadata} })
}

async fn objects(server: &Server, args: &GetArgs, targets: &[Target]) -> anyhow::Result<()> {
    let (mut found, mut names) = (Vec::new(), Vec::new());
    for target in targets {
        let these = match &target.name {
            Some(name) => {
                let namespace = args.scope.namespace().unwrap_or("default");
                vec![targets::object(server, &target.kind, namespace, name).await?]
            }
            None => targets::list(server, &target.kind, &args.scope).await?,
        };
        names.extend(
            these.iter().map(|object| target.kind.shown(object["metadata"]["name"].as_str().unwrap_or_default())),
        );
        found.extend(these);
    }
    let one = matches!(targets, [Target { name: Some(_), .. }]);
    let value = if one { found.remove(0) } else { json!({ "apiVersion": "v1", "kind": "List", "items": found }) };
    listing::print(args.output, &value, &names, &Table::default(), "");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_tables_gives_names() {
        let list = json!({"items": [{"metadata": {"name": "a", "creationTimestamp": "2026"}}]});
        let text = |answer| Table::from_api(&plain(answer), false, false, None).render(None);
        assert_eq!(text(&list), "NAME  CREATED\na     2026\n");
        assert_eq!(text(&list["items"][0]), "NAME  CREATED\na     2026\n");
    }
}
