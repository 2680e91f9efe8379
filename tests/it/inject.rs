//! `weft inject` and `weft uninject` as programs: what they print and how they end.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

const POD: &str = "# A pod.\napiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    \
    image: i # pinned\n";

/// Runs `weft` with a text on standard input.
fn weft(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn a_pod_gets_a_sidecar_through_a_pipe_and_loses_it_again() {
    let injected = weft(&["inject", "-f", "-"], POD);
    assert!(injected.status.success());
    assert_eq!(text(&injected.stderr), "pod/p injected\n");
    let with = text(&injected.stdout);
    assert!(
        with.starts_with("# A pod.\n") && with.contains("image: i # pinned") && with.contains("weft-sidecar"),
        "{with}"
    );
    let again = weft(&["inject", "-f", "-"], &with);
    assert_eq!((text(&again.stdout), text(&again.stderr)), (with.clone(), "pod/p unchanged\n".to_owned()));
    let back = weft(&["uninject", "-q", "-f", "-"], &with);
    assert_eq!((text(&back.stdout), text(&back.stderr)), (POD.to_owned(), String::new()));
}

#[test]
fn nothing_is_printed_when_one_of_the_files_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &str| std::fs::write(directory.path().join(name), content).expect("written");
    file("a.yaml", POD);
    file("b.yaml", &format!("{POD}    ports:\n    - containerPort: http\n"));
    let path = directory.path().to_string_lossy().into_owned();
    let refused = weft(&["inject", "-f", &path], "");
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), String::new()));
    let told = text(&refused.stderr);
    assert!(told.contains("b.yaml:11:22") && told.contains("\"http\" is no port"), "{told}");
    assert!(told.contains("1 of 2 files cannot be changed; nothing was printed"), "{told}");
}

#[test]
fn a_directory_is_printed_as_one_stream() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["a.yaml", "b.yaml"] {
        std::fs::write(directory.path().join(name), POD.trim_end()).expect("written");
    }
    let printed = weft(&["inject", "-f", &directory.path().to_string_lossy()], "");
    let stream = text(&printed.stdout);
    assert_eq!(stream.matches("\n---\n").count(), 1, "{stream}");
    assert_eq!(text(&printed.stderr), "pod/p injected\npod/p injected\n");
}
