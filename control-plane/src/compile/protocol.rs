//! What is spoken on a port: appProtocol, then the prefix of the port's name, then the list of opaque ports.

use weft_proto::v1::Protocol;

/// Ports on which the server usually speaks first or nobody speaks HTTP: mail, databases, caches, brokers.
const OPAQUE_PORTS: [u32; 15] =
    [25, 587, 1883, 2181, 3306, 4222, 4444, 5432, 5672, 6379, 9092, 9300, 11211, 27017, 61616];

/// The protocol of a service port.
pub fn of(app_protocol: Option<&str>, name: &str, port: u32) -> Protocol {
    let prefix = name.split('-').next().unwrap_or_default();
    app_protocol.and_then(word).or_else(|| word(prefix)).unwrap_or(if OPAQUE_PORTS.contains(&port) {
        Protocol::Tcp
    } else {
        Protocol::Unspecified
    })
}

/// The protocol that a word of `appProtocol`, a port name or a Workload means.
pub fn word(word: &str) -> Option<Protocol> {
    Some(match word {
        "http" => Protocol::Http,
        "http1" | "kubernetes.io/ws" => Protocol::Http1,
        "http2" | "h2c" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => Protocol::Tls,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_wins_over_the_name_and_the_name_over_the_port() {
        assert_eq!(of(Some("grpc"), "http-web", 5432), Protocol::Grpc);
        assert_eq!(of(Some("example.com/own"), "http-web", 80), Protocol::Http);
        assert_eq!(of(None, "http2-web", 5432), Protocol::Http2);
        assert_eq!(of(None, "web", 5432), Protocol::Tcp);
        assert_eq!(of(None, "httpd", 80), Protocol::Unspecified);
    }
}
