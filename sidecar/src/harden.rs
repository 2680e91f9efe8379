//! What keeps the private key inside this process. `app` calls it before there is a key.

/// No core dump, and no other process of the same user may look into this one's memory: both would show the key. A
/// system that refuses is reported and no reason to stop.
pub fn process() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps are not off; one would hold the private key");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user may read this one's memory");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_leaves_no_core_and_lets_no_process_of_its_user_read_its_memory() {
        process();
        let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        assert_eq!(
            rustix::process::dumpable_behavior().expect("Linux"),
            rustix::process::DumpableBehavior::NotDumpable
        );
    }
}
