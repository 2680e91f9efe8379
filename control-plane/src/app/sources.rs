//! Where the resources come from: the store beside a directory of files, or a cluster's API server.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use tokio::{sync::watch, task::JoinHandle};

use super::conditions::Sink;
use crate::{
    api,
    config::{ControlPlaneArgs, SourceKind},
    kubernetes::{
        self,
        lease::{Candidate, Times, identity},
        mirror::Mirror,
        status::Writer,
    },
    source::{
        Files, Resources, Source,
        stored::{self, Current},
    },
    store::Store,
};

/// What is compiled, as it changes.
pub struct Sources {
    /// All resources.
    pub resources: watch::Receiver<Current>,
    /// Those that are not in the store, as they were written.
    pub written: watch::Receiver<Arc<Files>>,
    /// The directory, if there is one.
    pub directory: Option<Arc<Source>>,
    /// Where statuses go.
    pub sink: Sink,
    /// What keeps the lease by which they are written, and ends when it was given back.
    pub candidate: Option<JoinHandle<()>>,
}

impl Sources {
    /// Follows what the flags say. Returns when there is something to compile: of a cluster, when all of it is known.
    ///
    /// # Errors
    /// When the directory cannot be read, or there is no cluster.
    pub async fn follow(args: &ControlPlaneArgs, store: &Store, stopping: &watch::Sender<bool>) -> Result<Self> {
        if args.source.source == SourceKind::Kubernetes {
            ensure!(
                args.resources.is_none(),
                "--source kubernetes: the objects are in the cluster; leave out --resources"
            );
            let client = kubernetes::client(args).await.context("--source kubernetes")?;
            let mut mirror = Mirror::follow(&client, store.clone(), &args.trust_domain);
            mirror.complete().await;
            let (leading, leads) = watch::channel(false);
            let candidate = Candidate::new(client.clone(), identity(), Times::default());
            let candidate = Some(tokio::spawn(candidate.run(leading, stopping.subscribe())));
            let Mirror { resources, written, versions, .. } = mirror;
            let sink = Sink::Cluster(Writer::new(client, versions, leads));
            let resources = stored::follow(resources, store.state());
            return Ok(Self { resources, written, directory: None, sink, candidate });
        }
        let (files, directory) = files(args)?;
        let written = directory.as_ref().map_or_else(|| watch::Sender::default().subscribe(), |source| source.files());
        let in_files = Arc::clone(&written.borrow());
        if let Err(error) = api::meshconfig::ensure(store, &in_files, args.dev).await {
            // The defaults are in force all the same, and reads go on.
            tracing::warn!(error = format!("{error:#}"), "the defaults are not visible");
        }
        let resources = stored::follow(files, store.state());
        Ok(Self { resources, written, directory, sink: Sink::Store, candidate: None })
    }
}

/// The resources as they change, and where their problems are.
type Followed = (watch::Receiver<Arc<Resources>>, Option<Arc<Source>>);

/// The resources of the directory, followed; or none.
fn files(args: &ControlPlaneArgs) -> Result<Followed> {
    let Some(directory) = &args.resources else {
        let none = Resources::of(&args.trust_domain);
        return Ok((watch::Sender::new(Arc::new(none)).subscribe(), None));
    };
    let source = Arc::new(Source::open(directory, &args.trust_domain)?);
    let following = Arc::clone(&source);
    tokio::spawn(async move {
        if let Err(error) = following.run().await {
            tracing::error!(%error, "the resource directory is no longer followed");
        }
    });
    Ok((source.watch(), Some(source)))
}
