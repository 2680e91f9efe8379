//! Objects as `Table`: what `kubectl get` prints. Columns of each kind are in `columns`.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{columns::Column, kinds::Kind};

/// How much of an object comes with its row.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Include {
    /// Its metadata.
    #[default]
    Metadata,
    /// Nothing.
    None,
    /// All of it.
    Object,
}

impl Include {
    /// The query parameter `includeObject`.
    ///
    /// # Errors
    /// When it is another word.
    pub fn parse(text: Option<&str>) -> Result<Self, String> {
        match text {
            None | Some("" | "Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(format!("includeObject: {other:?} is not one of None, Metadata, Object")),
        }
    }
}

/// A table of these objects, each with its metadata as clients see it.
#[must_use]
pub fn table<'a>(
    kind: &Kind,
    objects: impl Iterator<Item = (&'a Value, Value)>,
    metadata: &Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.map(|(object, own)| row(kind, object, own, include, now)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions(kind), "rows": rows,
    })
}

fn definitions(kind: &Kind) -> Vec<Value> {
    let definition = |name: &str, format: &str, description: &str, priority: u8| json!({ "name": name, "type": "string", "format": format, "description": description, "priority": priority });
    let column = |column: &Column| definition(column.name, "", column.description, u8::from(column.wide));
    let mut all = vec![definition("Name", "name", "Name of the object, unique in its namespace and kind.", 0)];
    all.extend(narrow(kind).map(column));
    all.push(definition("Age", "", "Time since it was created.", 0));
    all.extend(wide(kind).map(column));
    all
}

fn narrow(kind: &Kind) -> impl Iterator<Item = &'static Column> {
    kind.columns.iter().filter(|column| !column.wide)
}

fn wide(kind: &Kind) -> impl Iterator<Item = &'static Column> {
    kind.columns.iter().filter(|column| column.wide)
}

fn row(kind: &Kind, object: &Value, metadata: Value, include: Include, now: Timestamp) -> Value {
    let mut cells = vec![metadata["name"].clone()];
    cells.extend(narrow(kind).map(|column| (column.value)(object).into()));
    cells.push(age(metadata["creationTimestamp"].as_str(), now).into());
    cells.extend(wide(kind).map(|column| (column.value)(object).into()));
    let mut row = json!({ "cells": cells });
    match include {
        Include::None => {}
        Include::Object => {
            row["object"] = object.clone();
            row["object"]["metadata"] = metadata;
        }
        Include::Metadata => {
            row["object"] =
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
        }
    }
    row
}

fn age(created: Option<&str>, now: Timestamp) -> String {
    let created = created.and_then(|text| text.parse::<Timestamp>().ok());
    created.map_or_else(|| "<unknown>".to_owned(), |created| human(now.as_second() - created.as_second()))
}

/// A length of time as kubectl writes it.
fn human(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let with = |large: i64, unit: &str, small: i64, rest: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{rest}") }
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => with(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => with(days / 365, "y", days % 365, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::by_kind;

    fn cells(kind: &str, object: &Value) -> Vec<(String, String)> {
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        let own = object["metadata"].clone();
        let objects = [(object, own)].into_iter();
        let table = table(by_kind(kind).expect("known"), objects, &json!({}), Include::None, now);
        let names = table["columnDefinitions"].as_array().expect("columns").iter();
        let cells = table["rows"][0]["cells"].as_array().expect("cells").iter();
        names
            .zip(cells)
            .map(|(name, cell)| (name["name"].as_str().unwrap().into(), cell.as_str().unwrap().into()))
            .collect()
    }

    #[test]
    fn a_service_shows_type_address_ports_and_age() {
        let object = json!({
            "metadata": { "name": "cart", "creationTimestamp": "2026-01-01T00:50:00Z" },
            "spec": { "ports": [{ "port": 80 }, { "port": 90, "protocol": "TCP" }], "selector": { "app": "cart" } },
        });
        let expected = [
            ("Name", "cart"),
            ("Type", "ClusterIP"),
            ("Cluster-IP", "<none>"),
            ("External-IP", "<none>"),
            ("Port(s)", "80/TCP,90/TCP"),
            ("Age", "10m"),
            ("Selector", "app=cart"),
        ];
        let found = cells("Service", &object);
        assert_eq!(found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_policy_shows_its_targets_and_the_worst_of_its_conditions() {
        let condition = |status| json!([{ "type": "Accepted", "status": status }]);
        let object = json!({
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": { "targetRefs": [{ "kind": "Service", "name": "cart" }, { "kind": "Service", "name": "web" }] },
            "status": { "ancestors": [{ "conditions": condition("True") }, { "conditions": condition("False") }] },
        });
        let found = cells("TrafficPolicy", &object);
        assert_eq!(found[1], ("Targets".into(), "Service/cart,Service/web".into()));
        assert_eq!(found[4], ("Accepted".into(), "False".into()));
        assert_eq!(found[5], ("Age".into(), "<unknown>".into()));
    }

    #[test]
    fn ages_read_like_those_of_kubectl() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_700, "3h15m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
