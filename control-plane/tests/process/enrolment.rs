//! kill -9 of the program when it has recorded an issue and nobody has read the answer: the token is used up, its key
//! gets the certificate all the same, and nobody else gets one.

use std::time::{Duration, Instant};

use crate::{
    control_plane::{ControlPlane, LIMIT, command},
    sidecar::{self, Csr},
};

/// Rounds: each is killed at another moment.
const KILLS: usize = 8;

/// Makes a join token; its text and the roots as a token file has them.
fn token(control_plane: &ControlPlane) -> String {
    let wanted = r#"{"kind": "join", "namespace": "shop", "serviceAccount": "cart", "ttlSeconds": 600}"#;
    let made = control_plane.client().send("POST", "/weft/v1/tokens", wanted).expect("an answer");
    assert_eq!(made.code, 201, "{}", made.text);
    format!("{}\n{}", made.body["token"].as_str().expect("a token"), made.body["roots"].as_str().expect("roots"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_between_commit_and_answer_leaves_the_token_used_up_for_its_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = command(&directory.path().join("data"), directory.path());
    let (mut control_plane, _) = ControlPlane::start_serving(&mut command);
    for round in 0..KILLS {
        let (token, csr) = (token(&control_plane), Csr::new());
        let used = || control_plane.log().matches("join token used").count();
        let (before, xds, asking) = (used(), control_plane.xds, (token.clone(), csr.clone()));
        let answer = tokio::spawn(async move { sidecar::certify(xds, &asking.0, "cart", &asking.1).await });
        // It is on disk before this is logged; the answer is not read by anybody who counts.
        let until = Instant::now() + LIMIT;
        while used() == before {
            assert!(Instant::now() < until, "round {round}: {}", control_plane.log());
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        control_plane.kill();
        let _ = answer.await;
        (control_plane, _) = ControlPlane::start_serving(&mut command);
        let other = sidecar::certify(control_plane.xds, &token, "cart", &Csr::new()).await;
        let refused = format!("{:#}", other.err().unwrap_or_else(|| panic!("round {round}: another key was served")));
        assert!(refused.contains("with another key"), "round {round}: {refused}");
        let again = sidecar::certify(control_plane.xds, &token, "cart", &csr).await;
        let first = again.unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        let second = sidecar::certify(control_plane.xds, &token, "cart", &csr).await.expect("as often as it asks");
        assert_eq!(first, second, "round {round}: one token, one certificate");
    }
    let listed = control_plane.get("/weft/v1/tokens");
    let used = listed.body["items"].as_array().expect("items").iter().filter(|token| token["state"] == "used");
    assert_eq!(used.count(), KILLS, "{}", listed.text);
}
