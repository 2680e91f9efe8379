//! The cgroup of an app: by it the rules know the app's sockets, its children's too. It lies below our own, so that the
//! limits of whoever started us hold for the app as well.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::rules::App;

/// nft resolves paths below this one.
const ROOT: &str = "/sys/fs/cgroup";
/// With which the names of ours begin.
const PREFIX: &str = "weft-run-";
/// What is left in a cgroup has this long to be gone after it was killed.
const GONE: Duration = Duration::from_secs(5);

/// Where cgroups are made.
#[derive(Debug)]
pub struct Parent {
    dir: PathBuf,
    /// Of the hierarchy.
    mount: PathBuf,
}

/// A cgroup for one app; removed, with what is left in it, when it is dropped.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    app: App,
    /// Locked for as long as its owner lives: an unlocked one is a rest.
    _lock: File,
}

impl Parent {
    /// Our own cgroup in version 2.
    pub fn find() -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        let mount = mount(&mounts).context(
            "cgroup v2 is not mounted below /sys/fs/cgroup, and by it --transparent tells the app's traffic from \
             others'; mount it (mount -t cgroup2 none /sys/fs/cgroup), and enter network namespaces with `nsenter --net` \
             (`ip netns exec` hides it)",
        )?;
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup v2")?;
        Ok(Self { dir: mount.join(own), mount })
    }

    /// Makes the cgroup of an instance.
    pub fn make(&self, instance: &str) -> anyhow::Result<Cgroup> {
        let dir = self.dir.join(format!("{PREFIX}{instance}"));
        let level = dir.strip_prefix(&self.mount).map_or(0, |below| below.components().count());
        let path = dir.strip_prefix(ROOT).ok().and_then(Path::to_str);
        let Some(path) = path.filter(|path| !path.contains(['"', '\\', '\n'])) else {
            bail!("cgroup {}: a path that nft cannot take", dir.display());
        };
        let app = App::Cgroup { path: path.to_owned(), level };
        // Somebody may be looking just now whether it is a rest.
        for _ in 0..20 {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("make cgroup {}", dir.display()));
                }
                _ => {}
            }
            if let Some(lock) = lock(&dir) {
                return Ok(Cgroup { dir, app, _lock: lock });
            }
            sleep(Duration::from_millis(10));
        }
        bail!("cgroup {} is in use: this instance runs already", dir.display())
    }

    /// Removes cgroups whose owner is gone, and what is left in them: it would go on without its sidecar.
    pub fn clean(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            if let Some(_lock) = ours.then(|| lock(&entry.path())).flatten() {
                empty(&entry.path());
            }
        }
    }
}

/// The lock of a cgroup that is there; `None`: somebody has it.
fn lock(dir: &Path) -> Option<File> {
    let file = File::open(dir).ok()?;
    file.try_lock().ok()?;
    // Another one may have been made in its place before we had the lock.
    let same = file.metadata().ok()?.ino() == fs::metadata(dir).ok()?.ino();
    same.then_some(file)
}

impl Cgroup {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends all that is in it, and removes it.
    pub fn empty(&self) {
        empty(&self.dir);
    }

    /// How rules name it.
    pub const fn app(&self) -> &App {
        &self.app
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        empty(&self.dir);
    }
}

/// Ends all in a cgroup and below, and removes it.
fn empty(dir: &Path) {
    // Before Linux 5.14 there is no such file: then only an empty one goes.
    if let Err(error) = fs::write(dir.join("cgroup.kill"), "1")
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("weft: cgroup {}: {error}", dir.display());
    }
    let until = Instant::now() + GONE;
    loop {
        match remove(dir) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(10)),
            Err(error) => return eprintln!("weft: cgroup {} stays: {error}", dir.display()),
        }
    }
}

/// A cgroup goes after those that the app made in it.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Where cgroup v2 is mounted: alone, or beside version 1.
fn mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().rev().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2" && Path::new(path).starts_with(ROOT)).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_found_alone_and_beside_version_1() {
        let alone = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(mount(alone), Some(PathBuf::from("/sys/fs/cgroup")));
        let beside = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount(beside), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount("cgroup2 /mnt cgroup2 rw 0 0\ncgroup /sys/fs/cgroup cgroup rw 0 0\n"), None);
    }
}
