//! Tells the cluster the mesh's roots: the API server, in the `caBundle` of the webhook, and the pods, in a ConfigMap of
//! each namespace. Both follow the authority through every rotation.

use std::{sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{ConfigMap, Namespace},
    },
};
use kube::{
    Api, Client, Error,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
};

use super::chain;
use crate::{ca::Ca, inject::ROOTS};

/// What others may have changed is looked at again after this.
const AGAIN: Duration = Duration::from_secs(60);
/// After a failure.
const LATER: Duration = Duration::from_secs(2);
/// Key in the ConfigMap.
const KEY: &str = "roots.pem";
/// Namespaces in one answer of a list.
const PAGE: u32 = 500;
/// A watch ends after so many seconds at the latest; then there is a new list.
const WATCH: u32 = 290;

/// Writes them. Clones share the connection.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    configuration: String,
    ca: Arc<Ca>,
}

impl Publisher {
    /// For the webhook configuration of this name.
    #[must_use]
    pub fn new(client: Client, configuration: String, ca: Arc<Ca>) -> Self {
        Self { client, configuration, ca }
    }

    /// Keeps the `caBundle`.
    pub async fn bundle(self) {
        let mut roots = self.ca.watch();
        loop {
            let wait = match self.write_bundle().await {
                Ok(changed) => {
                    if changed {
                        tracing::info!(configuration = self.configuration, "caBundle of the webhook written");
                    }
                    AGAIN
                }
                Err(error) => {
                    let configuration = &self.configuration;
                    tracing::warn!(configuration, error = chain(&error), "caBundle of the webhook cannot be written");
                    LATER
                }
            };
            // The authority is never gone while we have it.
            let _ = tokio::time::timeout(wait, roots.changed()).await;
        }
    }

    /// Whether it had to be changed.
    async fn write_bundle(&self) -> Result<bool, Error> {
        let all: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let mut configuration = all.get(&self.configuration).await?;
        let bundle = ByteString(self.ca.roots_pem().into_bytes());
        let mut changed = false;
        for webhook in configuration.webhooks.iter_mut().flatten() {
            changed |= webhook.client_config.ca_bundle.as_ref() != Some(&bundle);
            webhook.client_config.ca_bundle = Some(bundle.clone());
        }
        if changed {
            // Its resourceVersion is what was read: a change in between is not lost.
            all.replace(&self.configuration, &PostParams::default(), &configuration).await?;
        }
        Ok(changed)
    }

    /// Keeps the ConfigMaps.
    pub async fn roots(self) {
        let mut roots = self.ca.watch();
        loop {
            roots.mark_unchanged();
            let ended = tokio::select! {
                ended = self.follow() => ended,
                _ = roots.changed() => continue,
            };
            if let Err(error) = ended {
                tracing::warn!(error = chain(&error), "the roots of the mesh do not reach all namespaces");
            }
            // A server that ends each watch at once is not asked for lists without a pause.
            tokio::time::sleep(LATER).await;
        }
    }

    /// Writes to all namespaces, and then to new ones, until the watch ends.
    async fn follow(&self) -> Result<(), Error> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        let mut page = ListParams::default().limit(PAGE);
        let version = loop {
            let list = all.list_metadata(&page).await?;
            for namespace in &list.items {
                self.write_roots(namespace.metadata.name.as_deref().unwrap_or_default()).await?;
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break list.metadata.resource_version.unwrap_or_default(),
            }
        };
        let mut events = std::pin::pin!(all.watch_metadata(&WatchParams::default().timeout(WATCH), &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(namespace) => {
                    self.write_roots(namespace.metadata.name.as_deref().unwrap_or_default()).await?;
                }
                // Such as 410 Gone: there is a new list.
                WatchEvent::Error(_) => break,
                _ => {}
            }
        }
        Ok(())
    }

    async fn write_roots(&self, namespace: &str) -> Result<(), Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let pem = self.ca.roots_pem();
        let written = match maps.get_opt(ROOTS).await? {
            None => {
                let mut map = ConfigMap::default();
                map.metadata.name = Some(ROOTS.into());
                map.data = Some([(KEY.to_owned(), pem)].into());
                maps.create(&PostParams::default(), &map).await
            }
            Some(map) if map.data.as_ref().and_then(|data| data.get(KEY)) == Some(&pem) => return Ok(()),
            Some(mut map) => {
                map.data = Some([(KEY.to_owned(), pem)].into());
                maps.replace(ROOTS, &PostParams::default(), &map).await
            }
        };
        match written {
            Ok(_) => Ok(()),
            // A namespace that ends takes nothing new, one that is gone neither; somebody who was faster wrote the same.
            Err(Error::Api(status)) if [403, 404, 409].contains(&status.code) => {
                tracing::debug!(namespace, reason = status.reason, "the roots were not written");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
