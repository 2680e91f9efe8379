//! Every way in which a state file or its directory can be wrong, each with its own reason, and none half used.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::PathBuf,
};

use weft_proto::ResourceType;

use super::{configuration::StoredResource, keep, *};
use crate::identity::testing::Authority;

const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 86_400);
const ID: &str = "spiffe://weft.local/ns/shop/sa/web";

fn owner() -> Owner {
    let (workload, namespace, account) = ("shop/web-1".into(), "shop".into(), "web".into());
    Owner { workload, namespace, account, trust_domain: None }
}

fn key(byte: u8) -> StateKey {
    StateKey::new(&[byte; 32]).expect("a key")
}

/// A directory with both files, written now.
struct Kept {
    base: tempfile::TempDir,
    now: SystemTime,
    identity: StoredIdentity,
    configuration: StoredConfiguration,
}

impl Kept {
    fn new(with: Option<StateKey>) -> Self {
        let base = tempfile::tempdir().expect("a directory");
        let now = SystemTime::now();
        let authority = Authority::default();
        let svid = Arc::new(authority.sign(ID, now - HOUR, now + HOUR));
        let (workload, roots) = (owner().workload, vec![authority.root()]);
        let identity = StoredIdentity { workload, svid, roots, obtained: now, saved: now };
        let configuration = StoredConfiguration {
            workload: owner().workload,
            spiffe_id: ID.into(),
            resources: vec![StoredResource {
                kind: ResourceType::Service,
                name: "shop/catalog".into(),
                version: "v1".into(),
                bytes: b"message".as_slice().into(),
            }],
            wanted: vec!["shop/catalog".into()],
            absent: vec!["shop/none".into()],
        };
        let kept = Self { base, now, identity, configuration };
        let store = kept.open(with, owner()).expect("a directory");
        store.save_identity(&kept.identity, now).expect("written");
        store.save_configuration(&kept.configuration, now).expect("written");
        kept
    }

    fn dir(&self) -> PathBuf {
        self.base.path().join("state")
    }

    fn file(&self, kind: Kind) -> PathBuf {
        self.dir().join(kind.file_name())
    }

    fn open(&self, key: Option<StateKey>, owner: Owner) -> Result<Store, Refused> {
        Store::open(&self.dir(), key, owner)
    }

    /// What a start finds, and the reasons of what it refuses.
    fn load(&self, key: Option<StateKey>, owner: Owner, now: SystemTime) -> (Found, Vec<String>) {
        let telemetry = Telemetry::default();
        let found = self.open(key, owner).expect("a directory").load(now, WEEK, &telemetry);
        (found, reasons(&telemetry))
    }
}

/// `file reason` of everything that was refused.
fn reasons(telemetry: &Telemetry) -> Vec<String> {
    let text = telemetry.render();
    let lines = text.lines().filter(|line| line.starts_with("weft_state_refused_total{"));
    lines.map(|line| line.split('"').skip(1).step_by(2).take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_was_kept_is_found_again_with_and_without_a_key() {
    for byte in [None, Some(7)] {
        let kept = Kept::new(byte.map(key));
        let (found, refused) = kept.load(byte.map(key), owner(), kept.now + HOUR / 2);
        assert_eq!(refused, [""; 0]);
        let identity = found.identity.expect("kept");
        assert_eq!(identity.svid.chain, kept.identity.svid.chain);
        assert_eq!(identity.svid.pkcs8(), kept.identity.svid.pkcs8());
        assert_eq!(identity.roots, kept.identity.roots);
        let (configuration, saved) = found.configuration.expect("kept");
        assert_eq!(configuration, kept.configuration);
        assert!(kept.now.duration_since(saved).expect("in the past") < Duration::from_millis(1));
        for kind in [Kind::Identity, Kind::Configuration] {
            assert_eq!(fs::metadata(kept.file(kind)).expect("a file").mode() & 0o7777, 0o600);
        }
        let bytes = fs::read(kept.file(Kind::Identity)).expect("a file");
        let key = kept.identity.svid.pkcs8();
        assert_eq!(bytes.windows(key.len()).any(|window| window == key), byte.is_none(), "sealed: {byte:?}");
    }
}

#[test]
fn no_changed_byte_no_missing_and_no_further_one_is_ever_accepted() {
    for byte in [None, Some(7)] {
        let kept = Kept::new(byte.map(key));
        let store = kept.open(byte.map(key), owner()).expect("a directory");
        for kind in [Kind::Identity, Kind::Configuration] {
            let whole = fs::read(kept.file(kind)).expect("a file");
            let open = |bytes: &[u8]| {
                file::open(kind, zeroize::Zeroizing::new(bytes.to_vec()), store.key.as_ref()).map(|_| ())
            };
            open(&whole).expect("whole");
            for index in 0..whole.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[index] ^= flip;
                    let refused = open(&bytes).expect_err("changed");
                    let reason = refused.as_str();
                    assert!(
                        matches!(reason, "tampered" | "truncated" | "version" | "key_missing" | "unkeyed"),
                        "byte {index}: {reason}"
                    );
                }
                let reason = open(&whole[..index]).expect_err("cut").as_str();
                assert_eq!(reason, "truncated", "cut at {index}");
            }
            assert_eq!(open(&[&whole[..], b"x"].concat()).expect_err("longer").as_str(), "tampered");
            // The other kind's file under this name.
            let other = if kind == Kind::Identity { Kind::Configuration } else { Kind::Identity };
            let swapped = fs::read(kept.file(other)).expect("a file");
            assert_eq!(open(&swapped).expect_err("swapped").as_str(), "tampered");
        }
    }
}

#[test]
fn each_wrong_file_has_its_own_reason_and_the_configuration_is_not_used_without_a_certificate() {
    let kept = Kept::new(None);
    let now = kept.now;
    let foreign = |change: fn(&mut Owner)| {
        let mut owner = owner();
        change(&mut owner);
        let (found, refused) = kept.load(None, owner, now);
        assert!(found.identity.is_none() && found.configuration.is_none());
        assert_eq!(refused, ["configuration foreign", "identity foreign"]);
    };
    foreign(|owner| owner.workload = "shop/web-2".into());
    foreign(|owner| owner.account = "other".into());
    foreign(|owner| owner.namespace = "other".into());
    foreign(|owner| owner.trust_domain = Some("other.local".into()));

    let (found, refused) = kept.load(None, owner(), now + 2 * HOUR);
    assert_eq!(refused, ["identity expired"]);
    assert!(found.configuration.is_none(), "nothing could be served with it");
    let (_, refused) = kept.load(None, owner(), now - 3 * HOUR);
    assert_eq!(refused, ["configuration future", "identity future"]);
    let (found, refused) = kept.load(Some(key(1)), owner(), now);
    assert_eq!(refused, ["configuration unkeyed", "identity unkeyed"]);
    assert!(found.identity.is_none());

    let store = kept.open(None, owner()).expect("a directory");
    store.save_configuration(&kept.configuration, now - WEEK - HOUR).expect("written");
    drop(store);
    let (found, refused) = kept.load(None, owner(), now);
    assert_eq!(refused, ["configuration stale"]);
    assert!(found.identity.is_some() && found.configuration.is_none(), "the certificate can still be renewed");

    let keyed = Kept::new(Some(key(1)));
    assert_eq!(keyed.load(None, owner(), now).1, ["configuration key_missing", "identity key_missing"]);
    assert_eq!(keyed.load(Some(key(2)), owner(), now).1, ["configuration tampered", "identity tampered"]);
}

#[test]
fn a_file_of_another_workload_is_not_overwritten() {
    let kept = Kept::new(None);
    let other = Owner { workload: "shop/web-2".into(), ..owner() };
    let mut store = kept.open(None, other).expect("a directory");
    store.load(kept.now, WEEK, &Telemetry::default());
    assert_eq!(store.save_identity(&kept.identity, kept.now).expect_err("foreign").as_str(), "foreign");
    drop(store);
    assert!(kept.load(None, owner(), kept.now).0.identity.is_some());
}

#[test]
fn a_key_of_another_certificate_and_a_body_that_does_not_add_up_are_refused() {
    let kept = Kept::new(None);
    let body = kept.identity.encode();
    let other = Kept::new(None).identity.encode();
    let key = kept.identity.svid.pkcs8().len();
    let mixed = [&body[..body.len() - key], &other[other.len() - key..]].concat();
    assert_eq!(StoredIdentity::decode(&mixed, kept.now).expect_err("mixed").as_str(), "content");
    for cut in 0..body.len() {
        assert!(StoredIdentity::decode(&body[..cut], kept.now).is_err(), "{cut}");
    }
    let configuration = kept.configuration.encode();
    for cut in 0..configuration.len() {
        // Between two resources a body may end; the envelope's length says that it does not.
        if let Ok(decoded) = StoredConfiguration::decode(&configuration[..cut]) {
            assert!(decoded.resources.is_empty());
        }
    }
}

#[test]
fn directories_and_files_that_others_may_reach_are_refused() {
    let kept = Kept::new(None);
    let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    let refused = |kept: &Kept| kept.load(None, owner(), kept.now).1;
    for loose in [0o640, 0o604, 0o620, 0o602] {
        mode(kept.file(Kind::Identity), loose);
        assert_eq!(refused(&kept), ["identity permissions"], "{loose:o}");
    }
    mode(kept.file(Kind::Identity), 0o600);
    for loose in [0o710, 0o701, 0o770] {
        mode(kept.dir(), loose);
        assert_eq!(kept.open(None, owner()).err().expect("loose").as_str(), "permissions", "{loose:o}");
    }
    mode(kept.dir(), 0o700);
    assert_eq!(refused(&kept), [""; 0]);
    // Whoever is root may read the files of all: only that they are somebody else's tells.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(kept.file(Kind::Configuration), Some(12_345), None).expect("root may");
        assert_eq!(refused(&kept), ["configuration owner"]);
        std::os::unix::fs::chown(kept.dir(), Some(12_345), None).expect("root may");
        assert_eq!(kept.open(None, owner()).err().expect("another's").as_str(), "owner");
    }
}

#[test]
fn links_and_what_is_no_file_are_refused() {
    let kept = Kept::new(None);
    let (file, elsewhere) = (kept.file(Kind::Identity), kept.base.path().join("elsewhere"));
    fs::rename(&file, &elsewhere).expect("ours");
    symlink(&elsewhere, &file).expect("ours");
    assert_eq!(kept.load(None, owner(), kept.now).1, ["identity not_a_file"], "a symbolic link");
    fs::remove_file(&file).expect("ours");
    fs::hard_link(&elsewhere, &file).expect("ours");
    assert_eq!(kept.load(None, owner(), kept.now).1, ["identity not_a_file"], "a second name");
    fs::remove_file(&file).expect("ours");
    fs::create_dir(&file).expect("ours");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).expect("ours");
    assert_eq!(kept.load(None, owner(), kept.now).1, ["identity not_a_file"], "a directory");

    let link = kept.base.path().join("link");
    symlink(kept.dir(), &link).expect("ours");
    for path in [link.clone(), link.join("")] {
        assert_eq!(Store::open(&path, None, owner()).err().expect("a link").as_str(), "not_a_file", "{path:?}");
    }
    assert_eq!(Store::open(&elsewhere, None, owner()).err().expect("a file").as_str(), "not_a_file");
}

#[test]
fn two_sidecars_do_not_share_a_directory() {
    let kept = Kept::new(None);
    let first = kept.open(None, owner()).expect("free");
    assert_eq!(kept.open(None, owner()).err().expect("taken").as_str(), "locked");
    drop(first);
    kept.open(None, owner()).expect("free again");
}

#[tokio::test(start_paused = true)]
async fn changes_are_written_at_most_once_a_second_and_the_last_one_always() {
    let kept = Kept::new(None);
    let telemetry = Telemetry::default();
    let store = Arc::new(kept.open(None, owner()).expect("a directory"));
    let (mut saver, keeper) = keep::saver(Arc::clone(&store), WEEK, telemetry.clone());
    let keeper = tokio::spawn(keeper.run());
    let start = tokio::time::Instant::now();
    // A change every 10 ms, for 3 s.
    for _ in 0..300 {
        saver.changed();
        let soon = tokio::time::timeout(Duration::from_millis(10), saver.due()).await;
        if soon.is_ok() {
            saver.offer(kept.configuration.clone(), kept.now);
        }
    }
    assert!(start.elapsed() >= Duration::from_secs(2));
    let last = StoredConfiguration { wanted: vec!["shop/last".into()], ..kept.configuration.clone() };
    saver.offer(last.clone(), kept.now);
    drop(saver);
    keeper.await.expect("it ends");
    let text = telemetry.render();
    let line = text.lines().find(|line| line.starts_with("weft_state_writes_total{")).expect("written");
    let writes: u32 = line.rsplit(' ').next().expect("a value").parse().expect("a number");
    assert!((2..=5).contains(&writes), "{line} in {:?}", start.elapsed());
    drop(store);
    assert_eq!(kept.load(None, owner(), kept.now).0.configuration.expect("kept").0, last);
}

#[test]
fn each_start_is_newer_than_the_one_before_whatever_the_clock_says() {
    let kept = Kept::new(None);
    let next = |now| kept.open(None, owner()).expect("a directory").next_epoch(now).expect("kept");
    assert_eq!([next(1000), next(2000), next(5), next(5), next(3000)], [1000, 2000, 2001, 2002, 3000]);
    let file = kept.dir().join("epoch");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    for (damaged, expected) in [("", 7), ("x", 7), ("-1", 7), ("18446744073709551615\n", u64::MAX)] {
        fs::write(&file, damaged).expect("written");
        assert_eq!(next(7), expected, "{damaged:?}");
    }
    fs::write(&file, "1".repeat(30)).expect("written");
    assert_eq!(
        kept.open(None, owner()).expect("a directory").next_epoch(7).map_err(|refused| refused.as_str()),
        Err("too_large")
    );
    let mut foreign = kept.open(None, Owner { workload: "shop/other".into(), ..owner() }).expect("a directory");
    foreign.load(kept.now, WEEK, &Telemetry::default());
    assert!(foreign.next_epoch(7).is_err(), "that of somebody else stays");
}
