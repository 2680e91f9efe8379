//! Fetches from a real HTTPS server that does what it should not.

use super::{super::testing::Server, *};

fn client(server: &Server, allowed: &[&str]) -> Client {
    let allowed: Vec<String> = allowed.iter().map(|host| (*host).to_owned()).collect();
    Client::new(&allowed, Some(&server.ca)).expect("a CA")
}

/// The text, or why there is none; a fetch that does not end is a failure of the test.
async fn fetch(client: &Client, url: &str) -> Result<String, String> {
    tokio::time::timeout(Duration::from_secs(20), client.fetch(url)).await.expect("an end")
}

#[test]
fn only_https_urls_with_a_host_are_urls_of_key_sets() {
    for url in [
        "https://id.example/jwks",
        "https://id.example",
        "https://id.example:8443/a?b=c",
        "https://[2606:4700::1]/a",
        "HTTPS://ID.example/a",
    ] {
        assert_eq!(check_url(url), Ok(()), "{url}");
    }
    for url in [
        "",
        "id.example",
        "/jwks",
        "http://id.example/",
        "file:///etc/passwd",
        "ftp://id.example/",
        "https://",
        "https:///a",
        "https://user@id.example/",
        "https://user:secret@id.example/",
        "https://id.example:0/",
        "https://id.example:99999/",
        "https://id.example:/a b",
        "gopher://id.example/",
    ] {
        assert!(check_url(url).is_err(), "{url}");
    }
}

#[tokio::test]
async fn a_set_is_fetched_over_https_and_nothing_else_is() {
    let server = Server::start(|_| Server::ok("{\"keys\":[]}")).await;
    let client = client(&server, &["localhost", "127.0.0.1"]);
    assert_eq!(fetch(&client, &server.url("/a?b=c")).await.as_deref(), Ok("{\"keys\":[]}"));
    let seen = server.seen();
    assert!(seen[0].starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen:?}");
    assert!(seen[0].to_ascii_lowercase().contains(&format!("host: localhost:{}\r\n", server.port)), "{seen:?}");
    let strangers = Client::new(&["localhost".to_owned()], None).expect("no CA");
    let why = fetch(&strangers, &server.url("/")).await.unwrap_err();
    assert!(why.contains("no TLS") || why.contains("no root certificates"), "{why}");
    let named = fetch(&client, &server.url("/").replace("localhost", "127.0.0.1")).await.unwrap_err();
    assert!(named.contains("no TLS"), "the certificate is for another name: {named}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_name_that_leads_home_is_not_dialled() {
    let server = Server::start(|_| Server::ok("{}")).await;
    let client = client(&server, &["allowed.example"]);
    for host in
        ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
    {
        let why = fetch(&client, &format!("https://{host}:{}/", server.port)).await.unwrap_err();
        let refused = why.contains("nothing is fetched") || why.contains("does not resolve") || why.contains("no URL");
        assert!(refused, "{host}: {why}");
    }
    for host in ["169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "[fe80::1]", "224.0.0.1"] {
        let why = fetch(&client, &format!("https://{host}/latest/meta-data/")).await.unwrap_err();
        assert!(why.contains("nothing is fetched") && why.contains("--allow-jwks-host"), "{host}: {why}");
    }
    assert_eq!((server.seen().len(), server.connections()), (0, 0), "not even a connection");
}

#[tokio::test]
async fn redirects_errors_and_floods_are_refused() {
    let server = Server::start(|head| match head.split(' ').nth(1) {
        Some("/redirect") => {
            b"HTTP/1.1 302 Found\r\nLocation: https://169.254.169.254/\r\nContent-Length: 0\r\n\r\n".to_vec()
        }
        Some("/missing") => b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nsecret".to_vec(),
        Some("/empty") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        Some("/garbage") => b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(),
        Some("/cut") => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_vec(),
        Some("/latin") => b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff".to_vec(),
        Some("/most") => Server::ok(&"x".repeat(MAX_BYTES)),
        _ => Server::ok(&"x".repeat(MAX_BYTES + 1)),
    })
    .await;
    let client = client(&server, &["LOCALHOST"]);
    for (path, expected) in [
        ("/redirect", "redirects are not followed"),
        ("/missing", "answers 404"),
        ("/empty", "answers 204"),
        ("/garbage", "no answer"),
        ("/cut", "no answer"),
        ("/latin", "no text"),
        ("/flood", "sends more than"),
    ] {
        let why = fetch(&client, &server.url(path)).await.unwrap_err();
        assert!(why.contains(expected) && !why.contains("secret"), "{path}: {why}");
    }
    assert_eq!(fetch(&client, &server.url("/most")).await.map(|text| text.len()), Ok(MAX_BYTES));
}

#[test]
fn a_file_without_certificates_is_no_ca() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(Client::new(&[], Some(&file.path().to_path_buf())).is_err());
    assert!(Client::new(&[], Some(&PathBuf::from("/nowhere/ca.pem"))).is_err());
}
