//! Children that others have left behind: they come to us as process 1 of a container, and as the nearest supervisor
//! above the app, and would stay as zombies.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::signal::unix::{SignalKind, signal};

/// A child that is dead for so long is not one that somebody here waits for.
const DEAD: Duration = Duration::from_secs(1);

/// Takes in the orphans below this process, and buries them until it ends.
pub async fn bury() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("weft run: orphans of the app go to process 1: {error}");
    }
    let Ok(mut ends) = signal(SignalKind::child()) else { return };
    while ends.recv().await.is_some() {
        let before = dead();
        tokio::time::sleep(DEAD).await;
        for pid in dead().intersection(&before).filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Our children that are zombies.
fn dead() -> BTreeSet<i32> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: String = children.collect::<Vec<_>>().join(" ");
    let is_dead = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_dead).collect()
}
