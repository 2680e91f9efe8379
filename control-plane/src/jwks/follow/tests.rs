//! Sets that come, change, fail and end, from a real HTTPS server.

use std::sync::Mutex;

use super::{super::testing::Server, *};
use crate::source::Resources;

const ED: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"@"}]}"#;

const TIMES: Times = Times {
    refresh: Duration::from_millis(20),
    retry: Duration::from_millis(10),
    fetch: Duration::from_millis(500),
    keep: Duration::from_secs(3600),
};

fn policy(url: Option<&str>) -> Current {
    let text = url.map_or_else(String::new, |url| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: users}}\nspec: {{jwt: \
             [{{issuer: 'https://id.example', jwksUri: '{url}'}}]}}\n"
        )
    });
    let (resources, problems) = Resources::from_text("f.yaml", &text);
    assert_eq!(problems, []);
    Current { resources: Arc::new(resources), ..Current::default() }
}

struct Running {
    resources: watch::Sender<Current>,
    sets: watch::Receiver<Arc<KeySets>>,
}

fn start(server: &Server, directory: &std::path::Path, times: Times, url: &str) -> Running {
    let resources = watch::Sender::new(policy(Some(url)));
    let client = Client::new(&["localhost".to_owned()], Some(&server.ca)).expect("a CA");
    let fetching = Fetching::new(resources.subscribe(), client, Kept::new(directory.join("jwks")), times);
    let sets = fetching.sets();
    tokio::spawn(fetching.run());
    Running { resources, sets }
}

impl Running {
    /// Waits until the set of this URL is so.
    async fn until(&mut self, url: &str, what: &str, is: impl Fn(Result<&[v1::JwtKey], String>) -> bool) {
        let waiting = self.sets.wait_for(|sets| is(sets.keys(url)));
        if tokio::time::timeout(Duration::from_secs(20), waiting).await.is_err() {
            panic!("{what}: {:?}", self.sets.borrow());
        }
    }
}

use weft_proto::v1;

fn has(id: &str) -> impl Fn(Result<&[v1::JwtKey], String>) -> bool {
    move |keys| keys.is_ok_and(|keys| keys[0].id == id)
}

/// A server whose answer the test changes.
async fn changing() -> (Server, Arc<Mutex<Vec<u8>>>) {
    let answer = Arc::new(Mutex::new(Server::ok(&ED.replace('@', "one"))));
    let given = Arc::clone(&answer);
    (Server::start(move |_| given.lock().expect("whole").clone()).await, answer)
}

#[tokio::test]
async fn a_rotated_set_takes_the_place_of_the_old_one_and_a_bad_one_does_not() {
    let (server, answer) = changing().await;
    let directory = tempfile::tempdir().unwrap();
    let url = server.url("/jwks");
    let mut running = start(&server, directory.path(), TIMES, &url);
    running.until(&url, "the first", has("one")).await;
    *answer.lock().unwrap() = Server::ok(&ED.replace('@', "two"));
    running.until(&url, "the second", has("two")).await;
    let bad = [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec(),
        Server::ok("{}"),
        Server::ok(r#"{"keys":[{"kty":"oct","k":"AA"}]}"#),
        Vec::new(),
    ];
    for bad in bad {
        let before = server.seen().len();
        *answer.lock().unwrap() = bad;
        let asked = async {
            while server.seen().len() < before + 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asked).await.expect("it is asked again");
        assert!(has("two")(running.sets.borrow().keys(&url)), "the last good one stays");
    }
    *answer.lock().unwrap() = Server::ok(&ED.replace('@', "three"));
    running.until(&url, "the third", has("three")).await;
    running.resources.send_replace(policy(None));
    running.until(&url, "gone", |keys| keys.is_err()).await;
    assert!(Kept::new(directory.path().join("jwks")).read().is_empty(), "and forgotten on disk");
}

#[tokio::test]
async fn a_set_that_was_never_there_says_why_and_comes_when_it_can() {
    let (server, answer) = changing().await;
    *answer.lock().unwrap() = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_vec();
    let directory = tempfile::tempdir().unwrap();
    let url = server.url("/jwks");
    let mut running = start(&server, directory.path(), TIMES, &url);
    running.until(&url, "why", |keys| keys.is_err_and(|why| why.contains("answers 503"))).await;
    *answer.lock().unwrap() = Server::ok(&ED.replace('@', "one"));
    running.until(&url, "the set", has("one")).await;
}

#[tokio::test]
async fn a_set_that_cannot_be_fetched_ends_with_its_age() {
    let (server, answer) = changing().await;
    let directory = tempfile::tempdir().unwrap();
    let url = server.url("/jwks");
    let mut running = start(&server, directory.path(), Times { keep: Duration::from_millis(300), ..TIMES }, &url);
    running.until(&url, "the set", has("one")).await;
    *answer.lock().unwrap() = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec();
    running.until(&url, "its end", |keys| keys.is_err_and(|why| why.contains("answers 500"))).await;
}

#[tokio::test]
async fn a_control_plane_that_starts_anew_has_the_set_that_it_had() {
    let (server, answer) = changing().await;
    let directory = tempfile::tempdir().unwrap();
    let url = server.url("/jwks");
    let mut running = start(&server, directory.path(), TIMES, &url);
    running.until(&url, "the set", has("one")).await;
    let kept = Kept::new(directory.path().join("jwks"));
    let written = async {
        while kept.read().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written).await.expect("it is kept");
    drop(running);
    *answer.lock().unwrap() = Vec::new();
    let again = start(&server, directory.path(), TIMES, &url);
    assert!(has("one")(again.sets.borrow().keys(&url)), "at once, and the issuer does not answer");
    drop(again);
    let old = start(&server, directory.path(), Times { keep: Duration::ZERO, ..TIMES }, &url);
    assert!(old.sets.borrow().keys(&url).is_err(), "too old to count");
}

#[test]
fn a_clock_that_is_set_back_makes_no_set_younger() {
    let hour = Duration::from_secs(3600);
    let fetched = Fetched::at(SystemTime::now() - hour);
    assert!(fetched.age(SystemTime::now() - hour * 24 * 365) >= hour);
    assert!(fetched.age(SystemTime::now() + hour) >= hour * 2);
}
