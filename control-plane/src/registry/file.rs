//! The file that keeps registrations for the next process: a line for each that came and each that went, so that one
//! costs the same however many there are, and written anew when most lines say nothing any more. What is lost with a
//! machine that loses its power is registered again by the sidecars.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use prost::Message;
use weft_policy::SpiffeId;
use weft_proto::v1::Registration;

use super::{Entered, id};
use crate::compile::Registered;

/// The file is not written anew for fewer lines than these.
const FEW: usize = 1000;
/// In place of a SPIFFE id: the workload of this line has gone.
const GONE: &str = "-";

/// The file.
pub struct RegistryFile {
    path: PathBuf,
    /// None after a failure: the next change writes everything anew.
    out: Option<File>,
    lines: usize,
}

impl RegistryFile {
    /// What the file says, if there is one.
    pub fn open(path: &Path) -> (Self, Vec<Registered>) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut found = BTreeMap::new();
        for line in text.lines() {
            match (line.split_once('\t'), parse(line)) {
                (_, Some(registered)) => _ = found.insert(id(&registered.registration), registered),
                (Some((GONE, id)), None) => _ = found.remove(id),
                _ => tracing::warn!(file = %path.display(), "a registration that cannot be read is left out"),
            }
        }
        (Self { path: path.into(), out: None, lines: 0 }, found.into_values().collect())
    }

    /// A registration came, or says something new.
    pub fn put(&mut self, new: &Registered, all: &Entered) {
        self.append(&line(new), all);
    }

    /// A workload went.
    pub fn remove(&mut self, id: &str, all: &Entered) {
        self.append(&format!("{GONE}\t{id}\n"), all);
    }

    /// Everything anew.
    pub fn replace(&mut self, all: &Entered) {
        self.lines = all.len();
        self.out = self.write(all).map_err(|error| self.warn(&error)).ok();
    }

    fn append(&mut self, line: &str, all: &Entered) {
        let Some(out) = self.out.as_mut().filter(|_| self.lines < FEW.max(2 * all.len())) else {
            return self.replace(all);
        };
        self.lines += 1;
        if let Err(error) = out.write_all(line.as_bytes()) {
            self.warn(&error);
            self.out = None;
        }
    }

    fn write(&self, all: &Entered) -> io::Result<File> {
        let new = self.path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let mut out = io::BufWriter::new(File::options().write(true).create_new(true).mode(0o600).open(&new)?);
        for (_, registered) in all.values() {
            out.write_all(line(registered).as_bytes())?;
        }
        let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(new, &self.path)?;
        Ok(out)
    }

    fn warn(&self, error: &io::Error) {
        tracing::warn!(file = %self.path.display(), %error, "registrations could not be kept for a restart");
    }
}

/// SPIFFE id, a tab, the message in hex.
fn line(registered: &Registered) -> String {
    let bytes = registered.registration.encode_to_vec();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}\t{hex}\n", registered.spiffe_id)
}

fn parse(line: &str) -> Option<Registered> {
    let (spiffe_id, hex) = line.split_once('\t')?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    let registration = Registration::decode(bytes?.as_slice()).ok()?;
    Some(Registered { registration, spiffe_id: SpiffeId::parse(spiffe_id).ok()?.as_str().into() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn entered(numbers: &[usize]) -> Entered {
        numbers.iter().map(|number| (format!("shop/w-{number}"), (1, registered(*number)))).collect()
    }

    fn registered(number: usize) -> Arc<Registered> {
        let registration =
            Registration { name: format!("w-{number}"), namespace: "shop".into(), ..Registration::default() };
        Arc::new(Registered { registration, spiffe_id: "spiffe://weft.local/ns/shop/sa/catalog".into() })
    }

    #[test]
    fn the_file_follows_what_comes_and_goes_and_stays_small() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("registrations");
        let (mut file, read) = RegistryFile::open(&path);
        assert!(read.is_empty());
        let (one, both) = (entered(&[1]), entered(&[1, 2]));
        // More than the file is let grow to, and some after it was written anew.
        for _ in 0..FEW + 10 {
            file.put(&registered(2), &both);
            file.remove("shop/w-2", &one);
        }
        let names = |read: Vec<Registered>| read.into_iter().map(|r| r.registration.name).collect::<Vec<_>>();
        assert_eq!(names(RegistryFile::open(&path).1), ["w-1"]);
        file.put(&registered(2), &both);
        assert_eq!(names(RegistryFile::open(&path).1), ["w-1", "w-2"]);
        let lines = std::fs::read_to_string(&path).expect("readable").lines().count();
        assert!(lines <= FEW, "{lines} lines of {}", 2 * FEW);
        file.replace(&entered(&[2]));
        assert_eq!(names(RegistryFile::open(&path).1), ["w-2"]);
    }
}
