//! Bounds of what a peer may put into its registration. Whether the values make sense is the compiler's question, which
//! shows them as problems; here is only what would cost memory.

use weft_proto::v1::Registration;

/// Instances that one identity may register.
pub const PER_IDENTITY: usize = 1000;
/// Labels of one workload.
const LABELS: usize = 64;
/// Ports of one workload.
const PORTS: usize = 128;
/// Bytes of a label's key, as in Kubernetes: a prefix of 253, a slash and 63.
const KEY: usize = 317;
/// Bytes of any other text.
const TEXT: usize = 64;

/// Whether a registration is small enough.
///
/// # Errors
/// The field and the limit that it breaks.
pub fn check(registration: &Registration) -> Result<(), String> {
    count("labels", registration.labels.len(), LABELS)?;
    count("ports", registration.ports.len(), PORTS)?;
    count("connections", registration.connections.len(), PORTS)?;
    for (key, value) in &registration.labels {
        length("a label's key", key, KEY)?;
        length("a label's value", value, TEXT)?;
        // They are shown on terminals.
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err("registration: labels: a key or a value has control characters".to_owned());
        }
    }
    for port in &registration.ports {
        length("a port's name", &port.name, TEXT)?;
    }
    let locality = registration.locality.clone().unwrap_or_default();
    for (field, text) in [
        ("name", &registration.name),
        ("namespace", &registration.namespace),
        ("address", &registration.address),
        ("mesh_address", &registration.mesh_address),
        ("admin_address", &registration.admin_address),
        ("locality.region", &locality.region),
        ("locality.zone", &locality.zone),
        ("sidecar_version", &registration.sidecar_version),
    ] {
        length(field, text, TEXT)?;
    }
    Ok(())
}

fn count(field: &str, count: usize, limit: usize) -> Result<(), String> {
    if count <= limit { Ok(()) } else { Err(format!("registration: {field}: {count} are more than {limit}")) }
}

fn length(field: &str, text: &str, limit: usize) -> Result<(), String> {
    let length = text.len();
    if length <= limit { Ok(()) } else { Err(format!("registration: {field}: {length} bytes are more than {limit}")) }
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{PortConnections, WorkloadPort};

    use super::*;

    #[test]
    fn every_part_of_a_registration_is_bounded() {
        assert_eq!(check(&Registration::default()), Ok(()));
        let long = "x".repeat(400);
        let port = WorkloadPort { name: long.clone(), ..WorkloadPort::default() };
        let cases = [
            ("name", Registration { name: long.clone(), ..Registration::default() }),
            ("address", Registration { address: long.clone(), ..Registration::default() }),
            ("sidecar_version", Registration { sidecar_version: long.clone(), ..Registration::default() }),
            ("port's name", Registration { ports: vec![port], ..Registration::default() }),
            ("ports", Registration { ports: vec![WorkloadPort::default(); 129], ..Registration::default() }),
            (
                "connections",
                Registration { connections: vec![PortConnections::default(); 129], ..Registration::default() },
            ),
            ("label's key", Registration { labels: [(long.clone(), String::new())].into(), ..Registration::default() }),
            ("control", Registration { labels: [("app".into(), "\u{9b}2J".into())].into(), ..Registration::default() }),
            ("label's value", Registration { labels: [("app".into(), long)].into(), ..Registration::default() }),
            (
                "labels",
                Registration {
                    labels: (0..65).map(|n| (n.to_string(), String::new())).collect(),
                    ..Registration::default()
                },
            ),
        ];
        for (field, registration) in cases {
            let error = check(&registration).expect_err(field);
            assert!(error.contains(field), "{field} in {error}");
        }
    }
}
