//! Objects in Kubernetes' protobuf, which `kubectl create namespace` and `kubectl expose` send: read by tables of the
//! fields that are known. A field that is not in a table refuses the object, so that nothing is lost in silence.
//!
//! Field numbers are those of `generated.proto` of k8s.io/api and k8s.io/apimachinery.

use serde_json::{Map, Value};

/// First bytes of every object: `k8s` and 0.
const MAGIC: &[u8] = b"k8s\0";
/// Nesting of messages; the tables are no deeper.
const MAX_DEPTH: usize = 12;

/// A field: number, name in JSON, what it holds, whether there may be several.
struct Field(u64, &'static str, Holds, bool);

#[derive(Clone, Copy)]
enum Holds {
    Bool,
    /// `IntOrString`.
    Either,
    Int,
    /// Texts by texts.
    Map,
    Message(&'static [Field]),
    /// Read and not kept.
    Nothing,
    Text,
    /// `Time`.
    Time,
}

use Holds::{Bool, Either, Int, Map as Texts, Message, Nothing, Text, Time};

const OWNER: &[Field] = &[
    Field(1, "kind", Text, false),
    Field(3, "name", Text, false),
    Field(4, "uid", Text, false),
    Field(5, "apiVersion", Text, false),
    Field(6, "controller", Bool, false),
    Field(7, "blockOwnerDeletion", Bool, false),
];
const METADATA: &[Field] = &[
    Field(1, "name", Text, false),
    Field(2, "generateName", Text, false),
    Field(3, "namespace", Text, false),
    Field(4, "selfLink", Nothing, false),
    Field(5, "uid", Text, false),
    Field(6, "resourceVersion", Text, false),
    Field(7, "generation", Nothing, false),
    Field(8, "creationTimestamp", Time, false),
    Field(9, "deletionTimestamp", Time, false),
    Field(10, "deletionGracePeriodSeconds", Int, false),
    Field(11, "labels", Texts, false),
    Field(12, "annotations", Texts, false),
    Field(13, "ownerReferences", Message(OWNER), true),
    Field(14, "finalizers", Text, true),
    Field(17, "managedFields", Nothing, true),
];
const NAMESPACE: &[Field] = &[
    Field(1, "metadata", Message(METADATA), false),
    Field(2, "spec", Message(&[Field(1, "finalizers", Text, true)]), false),
    Field(3, "status", Nothing, false),
];
const SERVICE_PORT: &[Field] = &[
    Field(1, "name", Text, false),
    Field(2, "protocol", Text, false),
    Field(3, "port", Int, false),
    Field(4, "targetPort", Either, false),
    Field(5, "nodePort", Int, false),
    Field(6, "appProtocol", Text, false),
];
const SERVICE_SPEC: &[Field] = &[
    Field(1, "ports", Message(SERVICE_PORT), true),
    Field(2, "selector", Texts, false),
    Field(3, "clusterIP", Text, false),
    Field(4, "type", Text, false),
    Field(5, "externalIPs", Text, true),
    Field(7, "sessionAffinity", Text, false),
    Field(8, "loadBalancerIP", Text, false),
    Field(9, "loadBalancerSourceRanges", Text, true),
    Field(10, "externalName", Text, false),
    Field(11, "externalTrafficPolicy", Text, false),
    Field(12, "healthCheckNodePort", Int, false),
    Field(13, "publishNotReadyAddresses", Bool, false),
    Field(17, "ipFamilyPolicy", Text, false),
    Field(18, "clusterIPs", Text, true),
    Field(19, "ipFamilies", Text, true),
    Field(20, "allocateLoadBalancerNodePorts", Bool, false),
    Field(21, "loadBalancerClass", Text, false),
    Field(22, "internalTrafficPolicy", Text, false),
    Field(23, "trafficDistribution", Text, false),
];
const SERVICE: &[Field] = &[
    Field(1, "metadata", Message(METADATA), false),
    Field(2, "spec", Message(SERVICE_SPEC), false),
    Field(3, "status", Nothing, false),
];
const PRECONDITIONS: &[Field] = &[Field(1, "uid", Text, false), Field(2, "resourceVersion", Text, false)];
const DELETE_OPTIONS: &[Field] = &[
    Field(1, "gracePeriodSeconds", Int, false),
    Field(2, "preconditions", Message(PRECONDITIONS), false),
    Field(3, "orphanDependents", Bool, false),
    Field(4, "propagationPolicy", Text, false),
    Field(5, "dryRun", Text, true),
];
const TYPE: &[Field] = &[Field(1, "apiVersion", Text, false), Field(2, "kind", Text, false)];
const PAIR: &[Field] = &[Field(1, "key", Text, false), Field(2, "value", Text, false)];
const EITHER: &[Field] = &[Field(1, "type", Int, false), Field(2, "int", Int, false), Field(3, "text", Text, false)];
const TIME: &[Field] = &[Field(1, "seconds", Int, false), Field(2, "nanos", Int, false)];

/// The object as a JSON tree.
///
/// # Errors
/// Why it cannot be read: malformed, or of a kind or with a field that is not taken in this form.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin with \"k8s\" and 0")?;
    let (mut identity, mut raw) = (Value::Null, None);
    each(rest, |number, item| {
        match (number, item) {
            (1, Item::Bytes(bytes)) => identity = message(bytes, TYPE, "typeMeta", 0)?,
            (2, Item::Bytes(bytes)) => raw = Some(bytes),
            _ => {}
        }
        Ok(())
    })?;
    let raw = raw.ok_or("it has no object in it")?;
    let kind = identity["kind"].as_str().unwrap_or_default().to_owned();
    let table = match kind.as_str() {
        "Namespace" => NAMESPACE,
        "Service" => SERVICE,
        "DeleteOptions" => DELETE_OPTIONS,
        other => return Err(format!("kind {other:?} is not taken in this form")),
    };
    let mut object = message(raw, table, "", 0)?;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), identity["apiVersion"].clone());
        fields.insert("kind".into(), kind.into());
    }
    Ok(object)
}

enum Item<'a> {
    Bytes(&'a [u8]),
    Number(u64),
}

/// Calls with each field of a message.
fn each<'a>(mut rest: &'a [u8], mut take: impl FnMut(u64, Item<'a>) -> Result<(), String>) -> Result<(), String> {
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let item = match tag & 7 {
            0 => Item::Number(varint(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).unwrap_or(usize::MAX);
                let (bytes, after) = rest.split_at_checked(length).ok_or("it ends too early")?;
                rest = after;
                Item::Bytes(bytes)
            }
            other => return Err(format!("field {} has wire type {other}", tag >> 3)),
        };
        take(tag >> 3, item)?;
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, after) = rest.split_first().ok_or("it ends too early")?;
        *rest = after;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long".into())
}

fn message(bytes: &[u8], table: &[Field], path: &str, depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err("it is nested too deep".into());
    }
    let mut fields = Map::new();
    each(bytes, |number, item| {
        let Some(Field(_, name, holds, several)) = table.iter().find(|field| field.0 == number) else {
            return Err(format!("field number {number} in \"{path}\" is not taken in this form"));
        };
        let inner = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
        let value = match (holds, item) {
            (Nothing, _) => return Ok(()),
            (Texts, Item::Bytes(bytes)) => {
                let pair = message(bytes, PAIR, &inner, depth + 1)?;
                let map = fields.entry(*name).or_insert_with(|| Value::Object(Map::new()));
                map[pair["key"].as_str().unwrap_or_default()] = pair["value"].as_str().unwrap_or_default().into();
                return Ok(());
            }
            (holds, item) => one(*holds, item, &inner, depth)?,
        };
        match (several, fields.get_mut(*name)) {
            (true, Some(Value::Array(items))) => items.push(value),
            (true, _) => _ = fields.insert((*name).to_owned(), Value::Array(vec![value])),
            // Go writes texts and numbers that are not set: they are the same as none.
            (false, _) if value == "" => {}
            (false, _) => _ = fields.insert((*name).to_owned(), value),
        }
        Ok(())
    })?;
    // A NodePort or a check port of 0 is none.
    for name in ["healthCheckNodePort", "nodePort"] {
        if fields.get(name) == Some(&Value::from(0)) {
            fields.remove(name);
        }
    }
    Ok(Value::Object(fields))
}

fn one(holds: Holds, item: Item<'_>, path: &str, depth: usize) -> Result<Value, String> {
    Ok(match (holds, item) {
        (Bool, Item::Number(number)) => (number != 0).into(),
        (Int, Item::Number(number)) => number.cast_signed().into(),
        (Text, Item::Bytes(bytes)) => {
            std::str::from_utf8(bytes).map_err(|_| format!("\"{path}\" is not UTF-8"))?.into()
        }
        (Message(table), Item::Bytes(bytes)) => message(bytes, table, path, depth + 1)?,
        (Either, Item::Bytes(bytes)) => {
            let either = message(bytes, EITHER, path, depth + 1)?;
            if either["type"] == 1 { either["text"].clone() } else { number_or_zero(&either["int"]) }
        }
        (Time, Item::Bytes(bytes)) => {
            let seconds = message(bytes, TIME, path, depth + 1)?["seconds"].as_i64().unwrap_or(0);
            let time =
                k8s_openapi::jiff::Timestamp::from_second(seconds).map_err(|_| format!("\"{path}\" is no time"))?;
            // The zero time of Go is none.
            if seconds > 0 { time.to_string().into() } else { Value::Null }
        }
        _ => return Err(format!("\"{path}\" is of another type")),
    })
}

fn number_or_zero(value: &Value) -> Value {
    if value.is_null() { 0.into() } else { value.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A field of bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).expect("short")], bytes].concat()
    }

    fn object(kind: &str, raw: &[u8]) -> Vec<u8> {
        let identity = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &identity), &field(2, raw)].concat()
    }

    #[test]
    fn a_service_in_protobuf_is_the_same_in_json() {
        let metadata = [field(1, b"cart"), field(2, b""), field(11, &[field(1, b"app"), field(2, b"cart")].concat())];
        let target = [vec![1 << 3, 1], field(3, b"web")].concat();
        let port = [field(1, b"http"), vec![3 << 3, 80], field(4, &target), vec![5 << 3, 0]].concat();
        let raw = [field(1, &metadata.concat()), field(2, &field(1, &port)), field(3, b"")].concat();
        assert_eq!(
            parse(&object("Service", &raw)),
            Ok(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": "cart", "labels": { "app": "cart" } },
                "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": "web" }] },
            }))
        );
    }

    #[test]
    fn what_is_not_known_or_malformed_is_refused() {
        for (bytes, says) in [
            (b"{}".to_vec(), "does not begin with"),
            (object("Pod", b""), "kind \"Pod\" is not taken"),
            (object("Namespace", &field(9, b"")), "field number 9 in \"\" is not taken"),
            (object("Namespace", &[10, 200]), "ends too early"),
            (object("Namespace", &[8, 1]), "\"metadata\" is of another type"),
            (object("Namespace", &[9]), "wire type 1"),
            ([MAGIC, &[255; 12]].concat(), "a number is too long"),
        ] {
            let why = parse(&bytes).expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = parse(&object("Service", &bytes[..bytes.len().min(120)]));
            let _ = parse(&[MAGIC, &bytes].concat());
        }
    }
}
