//! The ports of a compose service: those of the label `weft.dev/ports`, or what `ports` and `expose` say of its own side.

use serde_json::Value;

use super::shown;
use crate::{
    inject::{
        AppPort,
        annotations::{PROTOCOLS, Settings},
        array, is_taken, problem,
    },
    source::{Problem, is_dns_label},
};

const HINT: &str = "name the ports of the app in the label weft.dev/ports";

/// The ports, each once.
///
/// # Errors
/// When one cannot be understood, or is the sidecar's.
pub fn of(service: &Value, settings: &Settings, at: &str) -> Result<Vec<AppPort>, Problem> {
    if let Some(ports) = &settings.ports {
        return Ok(ports.iter().map(|(number, flag)| AppPort { number: *number, flag: flag.clone() }).collect());
    }
    let mut ports: Vec<AppPort> = Vec::new();
    for field in ["ports", "expose"] {
        for (index, item) in array(service, field).iter().enumerate() {
            let path = format!("{at}.{field}[{index}]");
            for port in one(item, &path)? {
                if is_taken(port.number) {
                    let text = format!("port {} is the sidecar's", port.number);
                    return Err(problem(&path, text, "let the app listen on another one"));
                }
                if ports.iter().all(|known| known.number != port.number) {
                    ports.push(port);
                }
            }
        }
    }
    Ok(ports)
}

/// `[[IP:]HOST:]PORT[-PORT][/PROTOCOL]`, or a mapping with `target`.
fn one(item: &Value, path: &str) -> Result<Vec<AppPort>, Problem> {
    if let Some(long) = item.as_object() {
        if long.get("protocol").map(shown).is_some_and(|protocol| protocol != "tcp") {
            return Ok(Vec::new());
        }
        let label = |field: &str| long.get(field).and_then(Value::as_str);
        let name = label("name").filter(|name| is_dns_label(name)).map(|name| format!("{name}:"));
        let protocol = label("app_protocol").filter(|known| PROTOCOLS.contains(known)).map(|known| format!("/{known}"));
        let numbers = range(&long.get("target").map(shown).unwrap_or_default(), &format!("{path}.target"))?;
        let flag =
            |number| format!("{}{number}{}", name.clone().unwrap_or_default(), protocol.clone().unwrap_or_default());
        return Ok(numbers.map(|number| AppPort { number, flag: flag(number) }).collect());
    }
    let text = without_variables(&shown(item));
    let (rest, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    if protocol != "tcp" {
        return Ok(Vec::new());
    }
    let own = rest.rsplit(':').next().unwrap_or_default();
    Ok(range(own, path)?.map(|number| AppPort { number, flag: number.to_string() }).collect())
}

/// `80` or `80-90`.
fn range(text: &str, path: &str) -> Result<std::ops::RangeInclusive<u16>, Problem> {
    if text.contains('$') {
        return Err(problem(path, "the port is a variable, whose value is not known here", HINT));
    }
    let number = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
    let (first, last) = range.ok_or_else(|| problem(path, format!("{text:?} is no port"), HINT))?;
    Ok(first..=last)
}

/// Variables have colons in them; what they are does not matter before the port of the app.
fn without_variables(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, variable)) = rest.split_once("${") {
        out.push_str(before);
        out.push('$');
        rest = variable.split_once('}').map_or("", |(_, after)| after);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_what_the_app_listens_on_however_it_is_published() {
        let cases = [
            (json!("80"), vec!["80"]),
            (json!(80), vec!["80"]),
            (json!("8080:80"), vec!["80"]),
            (json!("127.0.0.1:8080:80/tcp"), vec!["80"]),
            (json!("[::1]:8080:80"), vec!["80"]),
            (json!("9000-9001:90-91"), vec!["90", "91"]),
            (json!("${PUBLISHED:-8080}:80"), vec!["80"]),
            (json!("53:53/udp"), vec![]),
            (json!({"target": 80, "published": "8080", "app_protocol": "http", "name": "web"}), vec!["web:80/http"]),
            (json!({"target": "80", "app_protocol": "ws"}), vec!["80"]),
            (json!({"target": 53, "protocol": "udp"}), vec![]),
        ];
        for (item, expected) in cases {
            let found: Vec<String> = one(&item, "p").unwrap().into_iter().map(|port| port.flag).collect();
            assert_eq!(found, expected, "{item}");
        }
        for wrong in
            [json!("80:$PORT"), json!("8080:${PORT}"), json!("http"), json!("0"), json!("9-8"), json!({}), json!(70000)]
        {
            assert!(one(&wrong, "p").unwrap_err().hint.contains("weft.dev/ports"), "{wrong}");
        }
    }
}
