//! Follows the directory: notify's events, gathered until it is quiet, then one reload. Atomic renames and symlink
//! swaps are seen because directories are watched, never files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{sync::mpsc, time::Instant};

use super::{Source, SourceError};

/// Quiet for so long means that an editor or a copy is done; a reload is never put off longer than the second.
const QUIET: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

impl Source {
    /// Follows the directory for ever; fails only if it cannot be watched to begin with.
    pub async fn run(self: Arc<Self>) -> Result<(), SourceError> {
        let (sender, mut events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| changes(event.kind)) {
                // Full means that a reload is due already.
                let _ = sender.try_send(());
            }
        })
        .map_err(|error| self.watch_error(error))?;
        let mut target = self.follow(&mut watcher)?;
        // What changed between opening and watching.
        self.reload_and_log().await;
        while next(&mut events).await {
            let now = self.directory.canonicalize().ok();
            if now.is_some() && now != target {
                if let Some(old) = target.take() {
                    let _ = watcher.unwatch(&old);
                }
                match self.follow(&mut watcher) {
                    Ok(new) => target = new,
                    Err(error) => tracing::warn!(%error, "resources are not followed"),
                }
            }
            self.reload_and_log().await;
        }
        Ok(())
    }

    /// Watches what the directory is now, and its parent, in which it may be replaced.
    fn follow(&self, watcher: &mut RecommendedWatcher) -> Result<Option<PathBuf>, SourceError> {
        let target =
            self.directory.canonicalize().map_err(|error| SourceError::Read { path: self.directory.clone(), error })?;
        watcher.watch(&target, RecursiveMode::NonRecursive).map_err(|error| self.watch_error(error))?;
        let parent = self.directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        if let Err(error) = watcher.watch(parent, RecursiveMode::NonRecursive) {
            tracing::debug!(%error, "a replaced resource directory will not be noticed");
        }
        Ok(Some(target))
    }

    fn watch_error(&self, error: notify::Error) -> SourceError {
        SourceError::Watch { path: self.directory.clone(), error }
    }

    async fn reload_and_log(self: &Arc<Self>) {
        let before = self.problems();
        let source = Arc::clone(self);
        match tokio::task::spawn_blocking(move || source.reload()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "resources stay as they are"),
            Err(error) => tracing::error!(%error, "reload of resources failed"),
        }
        for problem in self.problems() {
            if !before.contains(&problem) {
                tracing::warn!("{problem}");
            }
        }
    }
}

/// Waits for a change and then for quiet. False: nobody sends any more.
async fn next(events: &mut mpsc::Receiver<()>) -> bool {
    if events.recv().await.is_none() {
        return false;
    }
    let end = Instant::now() + LONGEST;
    loop {
        let quiet = (Instant::now() + QUIET).min(end);
        match tokio::time::timeout_at(quiet, events.recv()).await {
            Ok(Some(())) if Instant::now() < end => {}
            Ok(None) => return false,
            _ => return true,
        }
    }
}

/// Our own reading must not look like a change.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_one_change_and_never_waits_for_long() {
        let (sender, mut events) = mpsc::channel(1);
        let start = Instant::now();
        sender.send(()).await.unwrap();
        assert!(next(&mut events).await);
        assert_eq!(start.elapsed(), QUIET);
        let writer = tokio::spawn(async move {
            for _ in 0..100 {
                let _ = sender.send(()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let start = Instant::now();
        assert!(next(&mut events).await);
        assert!(start.elapsed() <= LONGEST + QUIET, "{:?}", start.elapsed());
        writer.abort();
        while next(&mut events).await {}
    }

    #[test]
    fn reading_is_not_a_change() {
        assert!(!changes(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(changes(EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(changes(EventKind::Any));
    }
}
