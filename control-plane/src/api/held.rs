//! What is in force: the objects of the files and, beside them, those of the store. What a file has is read-only here.

use std::sync::Arc;

use axum::http::StatusCode;

use super::{ApiState, kinds::Kind, status::ApiError};
use crate::{
    source::Files,
    store::{Key, State, Stored},
};

impl ApiState {
    /// The object that is in force: a file's stays when the store has one of the same name.
    pub(super) fn held(&self, key: &Key) -> Option<Arc<Stored>> {
        self.files.borrow().get(key).cloned().or_else(|| self.store.get(key))
    }

    /// Refuses to change objects that live in the API server of a cluster.
    ///
    /// # Errors
    /// 403 that says where to change them.
    pub(super) fn refuse_elsewhere(&self) -> Result<(), ApiError> {
        if !self.elsewhere {
            return Ok(());
        }
        let message = "objects are read-only here: they live in the API server of the cluster (--source kubernetes); change \
                       them there, as with kubectl apply";
        Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message))
    }

    /// Refuses to change what a file has.
    ///
    /// # Errors
    /// 403 that names the file.
    pub(super) fn refuse_file(&self, kind: &Kind, key: &Key) -> Result<(), ApiError> {
        let files = self.files.borrow();
        let Some(place) = files.place(key) else { return Ok(()) };
        let message = format!(
            "{} \"{}\" is read-only: it comes from {place}; change or remove it there",
            kind.resource(),
            key.name
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message).of(kind, &key.name))
    }
}

/// The objects of one kind that are in force, in one namespace or in all, by namespace and name.
pub(super) fn list<'a>(
    objects: &'a State,
    files: &'a Files,
    kind: &'a str,
    namespace: Option<&'a str>,
) -> Vec<&'a Arc<Stored>> {
    let stored = objects.list(kind, namespace).filter(|stored| files.get(&stored.key).is_none());
    let mut all: Vec<_> = stored.chain(files.list(kind, namespace)).collect();
    if !files.is_empty() {
        all.sort_by(|a, b| a.key.cmp(&b.key));
    }
    all
}
