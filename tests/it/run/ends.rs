//! Exit codes, signals, orphans and zombies.

use std::time::Instant;

use rustix::process::Signal;

use super::{end, has_line, start};
use crate::{mesh::TestMesh, net::eventually, process::signal};

#[test]
fn a_job_leaves_with_its_own_exit_code_and_takes_the_sidecar_with_it() {
    let mesh = TestMesh::builder("run-jobs").start();
    for (name, script, expected) in [("zero", "exit 0", 0), ("seven", "exit 7", 7), ("killed", "kill -KILL $$", 137)] {
        let ended = mesh.dir.join(format!("{name}.ended"));
        let script = format!("touch {}; {script}", ended.display());
        let mut job = start(&mesh, name, &[], &["sh", "-c", &script]);
        eventually("the job's last act", || if ended.exists() { Ok(()) } else { Err(job.output()) });
        let (since, sidecar) = (Instant::now(), job.below_with(&["sidecar"]));
        let status = end(&mut job);
        println!("weft run ended {:?} after the job", since.elapsed());
        assert_eq!(status.code(), Some(expected), "{}", job.output());
        assert!(sidecar.iter().all(|pid| gone(*pid)), "the sidecar has ended before");
    }
}

#[test]
fn signals_come_to_the_app() {
    let mesh = TestMesh::builder("run-signals").start();
    let file = mesh.dir.join("signals");
    let script = format!(
        "for s in HUP INT QUIT USR1 USR2 WINCH; do trap \"echo $s >> {0}\" $s; done; trap 'echo TERM >> {0}; exit 5' TERM; \
         echo up >> {0}; while :; do sleep 0.05; done",
        file.display()
    );
    let mut app = start(&mesh, "app", &[], &["sh", "-c", &script]);
    has_line(&file, "up");
    for (name, number) in [
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("HUP", Signal::HUP),
        ("QUIT", Signal::QUIT),
        ("WINCH", Signal::WINCH),
        ("INT", Signal::INT),
        ("TERM", Signal::TERM),
    ] {
        signal(app.id(), number);
        has_line(&file, name);
    }
    assert_eq!(end(&mut app).code(), Some(5), "{}", app.output());
}

#[test]
fn nothing_outlives_a_weft_run_that_is_killed() {
    let mesh = TestMesh::builder("run-killed").start();
    let file = mesh.dir.join("up");
    let script = format!("echo up > {}; exec sleep 1000", file.display());
    let mut app = start(&mesh, "app", &[], &["sh", "-c", &script]);
    has_line(&file, "up");
    let (sidecar, below) = (app.below_with(&["sidecar"]), app.below_with(&[]));
    assert_eq!((sidecar.len(), below.len()), (1, 2), "{}", app.output());
    signal(app.id(), Signal::KILL);
    end(&mut app);
    for pid in below {
        eventually("the end of both", || if gone(pid) { Ok(()) } else { Err(format!("{pid} goes on")) });
    }
}

#[test]
fn orphans_of_the_app_are_buried() {
    let mesh = TestMesh::builder("run-orphans").start();
    let file = mesh.dir.join("orphan");
    // The shell in the middle ends without having waited for its child.
    let script = format!("sh -c 'sleep 1000 & echo $! > {}'; exec sleep 1000", file.display());
    let app = start(&mesh, "app", &[], &["sh", "-c", &script]);
    let orphan: u32 = eventually("its number", || {
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{error}: {}", app.output()))?;
        text.trim().parse().map_err(|_| text)
    });
    let stat = || std::fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
    let parent = || stat().rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    eventually("its new parent", || if parent() == Some(app.id()) { Ok(()) } else { Err(stat()) });
    signal(orphan, Signal::KILL);
    eventually("its funeral", || if stat().is_empty() { Ok(()) } else { Err(stat()) });
}

/// Not there, or nothing but an exit code.
fn gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}
