//! Processes that end with the test: started with a log of their own, stopped by their ids with all that they
//! started, whatever the test's outcome.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

/// A running program.
pub struct Process {
    child: Child,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::create(log).expect("a log");
        let out = file.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(file).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("{command:?}: {error}")), log: log.into() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }

    /// Its end, if that has come.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// The process ids below this one.
    pub fn below(&self) -> Vec<u32> {
        descendants(self.child.id())
    }

    /// The process ids below this one whose arguments begin with these.
    pub fn below_with(&self, arguments: &[&str]) -> Vec<u32> {
        let has = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).skip(1);
            arguments.iter().all(|argument| words.next() == Some(argument.as_bytes()))
        };
        descendants(self.child.id()).into_iter().filter(has).collect()
    }
}

impl Drop for Process {
    /// The root goes first, so that nothing is started again. Where there is no /proc, a polite stop does it all.
    fn drop(&mut self) {
        let below = descendants(self.child.id());
        if Path::new("/proc/self").exists() {
            let _ = self.child.kill();
        } else {
            signal(self.child.id(), Signal::TERM);
        }
        let _ = self.child.wait();
        below.into_iter().for_each(|pid| signal(pid, Signal::KILL));
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Every process below `root`.
fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in parentheses may hold anything; the parent is the second field after it.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}
