//! The file of the record: a JSON object a line, appended; when it is full it becomes the older of two, so that disk is
//! bounded and the newest half is always there.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use super::Entry;
use crate::ca::files::read_private;

/// Bytes of one of the two files.
const FULL: u64 = 8 * 1024 * 1024;

/// The file.
pub struct AuditFile {
    path: PathBuf,
    /// None after a failure: the next event opens it anew.
    out: Option<File>,
    bytes: u64,
    /// Bytes from which on it becomes the older one.
    full: u64,
}

impl AuditFile {
    /// Opens or makes it; and what is in it and in the older one, oldest first.
    ///
    /// # Errors
    /// When it cannot be opened or is open to others.
    pub fn open(path: &Path) -> Result<(Self, Vec<Entry>)> {
        let mut entries = Vec::new();
        for file in [&older(path), path] {
            if std::fs::symlink_metadata(file).is_ok() {
                let text = read_private(file)?;
                // A line that a crash cut is left out; the numbers tell that something is missing.
                entries.extend(text.lines().filter_map(|line| serde_json::from_str::<Entry>(line).ok()));
            }
        }
        let mut opened = Self { path: path.into(), out: None, bytes: 0, full: FULL };
        opened.reopen().with_context(|| format!("open {}", path.display()))?;
        Ok((opened, entries))
    }

    /// Appends. A failure is told in the log and stops nothing: what was done is in the log too.
    pub fn append(&mut self, entry: &Entry, synced: bool) {
        if let Err(error) = self.write(entry, synced) {
            self.out = None;
            tracing::error!(file = %self.path.display(), %error, "an audit event could not be kept");
        }
    }

    fn write(&mut self, entry: &Entry, synced: bool) -> io::Result<()> {
        let mut line = serde_json::to_string(entry).map_err(io::Error::other)?;
        line.push('\n');
        if self.bytes >= self.full {
            std::fs::rename(&self.path, older(&self.path))?;
            self.out = None;
        }
        if self.out.is_none() {
            self.reopen()?;
        }
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(line.as_bytes())?;
        self.bytes += u64::try_from(line.len()).unwrap_or(0);
        if synced { out.sync_data() } else { Ok(()) }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut out = File::from(rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR)?);
        self.bytes = out.metadata()?.len();
        if self.bytes > 0 && !ends_a_line(&self.path, self.bytes) {
            // What a crash cut must not swallow the next event.
            out.write_all(b"\n")?;
            self.bytes += 1;
        }
        self.out = Some(out);
        Ok(())
    }

    #[cfg(test)]
    pub fn set_full(&mut self, bytes: u64) {
        self.full = bytes;
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1.jsonl")
}

fn ends_a_line(path: &Path, bytes: u64) -> bool {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    File::open(path).and_then(|file| file.read_exact_at(&mut last, bytes - 1)).is_ok() && last == *b"\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        Entry { number, event: "issued".into(), ..Entry::default() }
    }

    fn numbers(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.number).collect()
    }

    #[test]
    fn what_was_appended_is_read_and_a_cut_line_costs_only_itself() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let (mut file, entries) = AuditFile::open(&path).expect("opened");
        assert!(entries.is_empty());
        file.append(&entry(1), true);
        file.append(&entry(2), false);
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, &text[..text.len() - 5]).expect("cut");
        let (mut file, entries) = AuditFile::open(&path).expect("opened");
        assert_eq!(numbers(&entries), [1]);
        file.append(&entry(3), false);
        assert_eq!(numbers(&AuditFile::open(&path).expect("opened").1), [1, 3]);
    }

    #[test]
    fn the_disk_that_it_takes_is_bounded_and_the_newest_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let (mut file, _) = AuditFile::open(&path).expect("opened");
        file.set_full(1000);
        for number in 1..=500 {
            file.append(&entry(number), false);
        }
        let size = |path: &Path| std::fs::metadata(path).expect("there").len();
        assert!(size(&path) + size(&older(&path)) < 2300);
        let read = numbers(&AuditFile::open(&path).expect("opened").1);
        let first = read[0];
        assert_eq!(read, (first..=500).collect::<Vec<_>>());
        assert!(read.len() > 10);
    }
}
