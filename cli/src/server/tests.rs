//! Which server a command calls, and with what.

use serde_json::json;

use super::*;

#[test]
fn the_text_of_a_warning_is_unquoted() {
    assert_eq!(warning(r#"299 - "spec.rules[0]: no \"a\" (yet)""#), "spec.rules[0]: no \"a\" (yet)");
    assert_eq!(warning("no quotes"), "no quotes");
    assert_eq!(warning(r#"299 - "open"#), "open");
}

#[test]
fn a_refusal_has_the_text_and_the_fields_of_the_status() {
    let body = json!({"kind": "Status", "reason": "Invalid", "message": "no", "details": {"causes": [
        {"field": "spec.ports", "message": "is missing"}]}});
    let refused = refusal(422, body, "other".into());
    assert_eq!((refused.message.as_str(), refused.code), ("no", 422));
    assert_eq!(refused.causes, [("spec.ports".to_owned(), "is missing".to_owned())]);
    assert_eq!(refusal(502, Value::Null, "other".into()).message, "other");
}

#[test]
fn queries_are_escaped_and_leave_out_what_is_not_given() {
    let path = with_query("/x", &[("labelSelector", Some("a=b,c")), ("limit", None), ("reason", Some("é &"))]);
    assert_eq!(path, "/x?labelSelector=a%3Db%2Cc&reason=%C3%A9+%26");
    assert_eq!(with_query("/x", &[("limit", None)]), "/x");
}

fn args(server: &str) -> ServerArgs {
    ServerArgs { server: server.to_owned(), ca_file: None, token_file: None, kubeconfig: None }
}

#[test]
fn a_server_is_a_url_or_host_and_port() {
    for (server, expected) in [("http://127.0.0.1:1", "http://127.0.0.1:1/"), ("localhost:2", "http://localhost:2/")] {
        assert_eq!(direct(&args(server)).unwrap().cluster_url.to_string(), expected);
    }
    for server in ["", "ftp://h:1", "http://", "/path"] {
        assert!(direct(&args(server)).is_err(), "{server}");
    }
}

#[test]
fn a_token_is_the_first_line_of_its_file_and_is_not_sent_in_the_clear() {
    let file = std::env::temp_dir().join(format!("weft-token-{}", std::process::id()));
    std::fs::write(&file, "secret\nmore\n").unwrap();
    let config = |server: &str| direct(&ServerArgs { token_file: Some(file.clone()), ..args(server) });
    for (server, sent) in [
        ("https://example.org:1", true),
        ("http://127.0.0.1:1", true),
        ("http://[::1]:1", true),
        ("localhost:1", true),
        ("http://example.org:1", false),
        ("http://127.0.0.1.example.org:1", false),
    ] {
        assert_eq!(config(server).is_ok(), sent, "{server}");
    }
    std::fs::write(&file, "\n").unwrap();
    assert!(config("https://h").is_err());
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_what_to_check() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = Server::new(&args(&address.to_string())).await.unwrap();
    let error = server.get("/api").await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("GET http://{address}/api: ")), "{error}");
    assert!(error.contains("refused") && error.contains("WEFT_SERVER"), "{error}");
}
