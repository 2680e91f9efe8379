//! Statuses of the cluster's objects, to its API server: by the one control plane that leads, and never over what somebody
//! else has written meanwhile.

use std::{sync::PoisonError, time::Duration};

use http::Request;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{mirror::Versions, told, watched};
use crate::store::Key;

/// Who writes, in the managed fields of objects.
pub const FIELD_MANAGER: &str = "weft";
/// One write: a connection that is dead without saying so must not hold up the other objects.
const ANSWER: Duration = Duration::from_secs(10);

/// Writes them.
pub struct Writer {
    client: Client,
    versions: Versions,
    leading: watch::Receiver<bool>,
}

impl Writer {
    /// Of the objects in these versions, while this control plane leads.
    #[must_use]
    pub const fn new(client: Client, versions: Versions, leading: watch::Receiver<bool>) -> Self {
        Self { client, versions, leading }
    }

    /// Whether it is this control plane that writes.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    /// Whether it is, as that changes.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.clone()
    }

    /// Replaces the fields of a status. Of an object that is gone there is none to write.
    ///
    /// # Errors
    /// When the API server does not take it, in words.
    pub async fn write(&self, key: &Key, status: &Value) -> Result<(), String> {
        let Some(watched) = watched::all().find(|watched| *watched.kind == *key.kind) else { return Ok(()) };
        let version = self.versions.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        let Some((uid, version)) = version else { return Ok(()) };
        // With the version that the status was made of: what was written since is not lost, but seen first.
        let body = json!({ "metadata": { "uid": uid, "resourceVersion": version }, "status": status });
        let path = watched.object_path(watched.versions.first().copied().unwrap_or("v1"), key);
        let request = Request::patch(format!("{path}/status?fieldManager={FIELD_MANAGER}"))
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(body.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        let resource = format!("{}/status", watched.resource());
        let Ok(answer) = tokio::time::timeout(ANSWER, self.client.request::<Value>(request)).await else {
            return Err(format!("patch {resource}: no answer in {} s", ANSWER.as_secs()));
        };
        match answer {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            Err(Error::Api(status)) if status.code == 409 => Err("somebody else was faster".to_owned()),
            Err(error) => Err(told("patch", &resource, &error)),
        }
    }
}
