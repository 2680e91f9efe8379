//! Saving the configuration while it changes: discovery says that something has changed, at most once a second it says
//! what is held, and a task of the control thread has it written by a thread that may wait for the disk.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

use super::{Refused, Store, configuration::StoredConfiguration, identity::StoredIdentity};
use crate::telemetry::Telemetry;

/// Between two writes.
const SPACING: Duration = Duration::from_secs(1);
/// What has not changed is written again after this time, so that its age says when it was last right.
const REFRESH: Duration = Duration::from_secs(600);

/// A configuration, and when it was right.
type Offered = Option<(Arc<StoredConfiguration>, SystemTime)>;

/// Discovery's end.
pub struct Saver {
    sender: watch::Sender<Offered>,
    refresh: Duration,
    dirty: bool,
    last: Instant,
}

/// The writing end.
pub struct Keeper {
    store: Arc<Store>,
    offered: watch::Receiver<Offered>,
    telemetry: Telemetry,
}

/// Both ends. `max_age` is how old a file may be: it is confirmed at least four times in that time.
#[must_use]
pub fn saver(store: Arc<Store>, max_age: Duration, telemetry: Telemetry) -> (Saver, Keeper) {
    let sender = watch::Sender::new(None);
    let keeper = Keeper { store, offered: sender.subscribe(), telemetry };
    let refresh = (max_age / 4).clamp(SPACING, REFRESH);
    (Saver { sender, refresh, dirty: false, last: Instant::now() }, keeper)
}

impl Saver {
    /// What is held may be something else now.
    pub const fn changed(&mut self) {
        self.dirty = true;
    }

    /// Something has changed that was not offered.
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Returns when [`Self::offer`] is due: a second after the last time if something has changed, else when it is to be
    /// confirmed.
    pub async fn due(&self) {
        tokio::time::sleep_until(self.last + if self.dirty { SPACING } else { self.refresh }).await;
    }

    /// What is held now.
    pub fn offer(&mut self, configuration: StoredConfiguration, now: SystemTime) {
        self.dirty = false;
        self.last = Instant::now();
        self.sender.send_replace(Some((Arc::new(configuration), now)));
    }
}

impl Keeper {
    /// Writes until the saver is gone; what it offered last is written before this ends.
    pub async fn run(mut self) {
        while self.offered.changed().await.is_ok() {
            let Some((configuration, now)) = self.offered.borrow_and_update().clone() else { continue };
            let store = Arc::clone(&self.store);
            write(&self.telemetry, "configuration", move || store.save_configuration(&configuration, now)).await;
            // A session that ends offers at once what has changed: the next write waits all the same, unless it is the
            // last.
            let closed = async {
                while self.offered.has_changed().is_ok() {
                    tokio::time::sleep(SPACING / 20).await
                }
            };
            let _ = tokio::time::timeout(SPACING, closed).await;
        }
    }
}

/// Writes the certificate's file; a failure is told and leaves the file of before.
pub async fn save_identity(store: &Arc<Store>, identity: StoredIdentity, telemetry: &Telemetry) {
    let (store, now) = (Arc::clone(store), SystemTime::now());
    write(telemetry, "identity", move || store.save_identity(&identity, now)).await;
}

async fn write(telemetry: &Telemetry, file: &'static str, save: impl FnOnce() -> Result<(), Refused> + Send + 'static) {
    let result = match tokio::task::spawn_blocking(save).await {
        Ok(Ok(())) => "written",
        Ok(Err(refused)) => {
            tracing::warn!(file, error = %refused, "state could not be written; the file of before stays");
            if matches!(refused, Refused::Foreign(..)) { "foreign" } else { "failed" }
        }
        Err(_) => "failed",
    };
    let labels = [("file", file), ("result", result)];
    telemetry.counter("weft_state_writes_total", "Writes of state files, by result", &labels).increment(1);
}
