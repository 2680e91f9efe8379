//! Reading the development token from where anybody could have put it: only what this user or root alone could have
//! written is believed, since the roots in it say which control plane is ours. All goes through one handle of the
//! directory, so that nothing can be exchanged between the check and the use.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use zeroize::Zeroizing;

/// Bytes of a token file: a token and a few roots.
const MAX: u64 = 256 * 1024;

/// The text of a file whose directory and itself only this user or root can write.
///
/// # Errors
/// When one of them is a link, somebody else's, writable by others, missing or of the wrong kind.
pub fn read(path: &Path) -> Result<Zeroizing<String>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{}: no path of a file", path.display());
    };
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory, open | OFlags::DIRECTORY, Mode::empty());
    let handle = handle.map_err(|error| named(error, directory, "a directory"))?;
    ours(&rustix::fs::fstat(&handle).map_err(io::Error::from)?, FileType::Directory, directory)?;
    // A pipe must not make us wait.
    let file = rustix::fs::openat(&handle, name, open | OFlags::NONBLOCK, Mode::empty());
    let file = file.map_err(|error| named(error, path, "a plain file"))?;
    ours(&rustix::fs::fstat(&file).map_err(io::Error::from)?, FileType::RegularFile, path)?;
    let mut text = Zeroizing::new(String::new());
    let read = File::from(file).take(MAX + 1).read_to_string(&mut text);
    let read = read.with_context(|| format!("read {}", path.display()))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX {
        bail!("{}: more than {MAX} bytes", path.display());
    }
    Ok(text)
}

fn named(error: rustix::io::Errno, path: &Path, expected: &str) -> anyhow::Error {
    use rustix::io::Errno;
    let shown = path.display();
    match error {
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO => {
            anyhow::anyhow!("{shown}: expected {expected} and no link: {REMEDY}")
        }
        other => anyhow::Error::from(io::Error::from(other)).context(format!("open {shown}")),
    }
}

const REMEDY: &str = "somebody else could choose the control plane; remove it and start weft control-plane --dev again, \
                      or give --token FILE";

/// Of this user or of root, and written by nobody else.
fn ours(stat: &Stat, kind: FileType, path: &Path) -> Result<()> {
    let (shown, own, mode) = (path.display(), rustix::process::geteuid().as_raw(), stat.st_mode & 0o7777);
    if FileType::from_raw_mode(stat.st_mode) != kind {
        let expected = if kind == FileType::Directory { "a directory" } else { "a plain file" };
        bail!("{shown}: expected {expected} and no link: {REMEDY}");
    }
    if stat.st_uid != own && stat.st_uid != 0 {
        bail!("{shown}: belongs to uid {} and not to uid {own} or root: {REMEDY}", stat.st_uid);
    }
    if mode & 0o022 != 0 {
        bail!("{shown}: mode {mode:04o} lets others write it: {REMEDY}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    /// A directory and a token file in it, both as the control plane makes them.
    fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = temporary.path().join("weft");
        let file = directory.join("dev-15012.token");
        fs::create_dir(&directory).expect("made");
        fs::write(&file, "weft1.secret").expect("written");
        set(&directory, 0o700);
        set(&file, 0o600);
        (temporary, directory, file)
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
    }

    fn refusal(path: &Path) -> String {
        let error = format!("{:#}", read(path).expect_err("refused"));
        assert!(!error.contains("secret"), "{error}");
        error
    }

    #[test]
    fn a_token_that_only_we_can_write_is_read() {
        let (_temporary, directory, file) = files();
        for (of_directory, of_file) in [(0o700, 0o600), (0o755, 0o644), (0o500, 0o400)] {
            set(&directory, of_directory);
            set(&file, of_file);
            assert_eq!(*read(&file).expect("ours"), "weft1.secret");
        }
    }

    #[test]
    fn a_token_that_others_can_write_or_exchange_is_refused() {
        let (_temporary, directory, file) = files();
        for mode in [0o620, 0o602, 0o666] {
            set(&file, mode);
            let error = refusal(&file);
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("dev-15012.token"), "{error}");
        }
        set(&file, 0o600);
        for mode in [0o770, 0o707, 0o1777] {
            set(&directory, mode);
            let error = refusal(&file);
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("--token FILE"), "{error}");
        }
    }

    #[test]
    fn links_folders_and_pipes_are_no_token() {
        let (temporary, directory, file) = files();
        let (link, folder, pipe) = (directory.join("link"), directory.join("folder"), directory.join("pipe"));
        symlink(&file, &link).expect("linked");
        fs::create_dir(&folder).expect("made");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("made");
        for path in [link, folder, pipe] {
            let error = refusal(&path);
            assert!(error.contains("expected a plain file and no link"), "{error}");
        }
        let other = temporary.path().join("other");
        symlink(&directory, &other).expect("linked");
        let error = refusal(&other.join("dev-15012.token"));
        assert!(error.contains("expected a directory and no link"), "{error}");
        let error = refusal(&directory.join("missing"));
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_token_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files away; what decides is then looked at alone.
            let (_temporary, _, file) = files();
            let mut stat = rustix::fs::stat(&file).expect("there");
            stat.st_uid = stat.st_uid.wrapping_add(1).max(1);
            assert!(ours(&stat, FileType::RegularFile, &file).is_err());
            return;
        }
        let (_temporary, directory, file) = files();
        for path in [&file, &directory] {
            std::os::unix::fs::chown(path, Some(12345), None).expect("given away");
            let error = refusal(&file);
            assert!(error.contains("uid 12345"), "{error}");
            std::os::unix::fs::chown(path, Some(0), None).expect("taken back");
        }
    }

    #[test]
    fn a_token_file_is_no_larger_than_tokens_are() {
        let (_temporary, _, file) = files();
        fs::write(&file, "x".repeat(300 * 1024)).expect("written");
        assert!(refusal(&file).contains("more than"), "{}", refusal(&file));
    }
}
