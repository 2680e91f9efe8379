//! The task between resources and streams: compiles whenever resources or registrations have changed and their burst is
//! over, and publishes what is different.

use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use tokio::{sync::watch, time::Instant};
use weft_proto::ResourceType;

use super::conditions::Found;
use crate::{
    ca::{Active, Ca},
    compile::{
        Compiled,
        again::{Compiler, only_slices},
    },
    jwks::KeySets,
    metrics::Metrics,
    push::{
        Reflected, View,
        debounce::{Changes, Debounce},
    },
    registry,
    sessions::Secret,
    source::{Problem, Resources, Source, stored::Current},
    store::Revision,
};

/// What is compiled, and where the result goes.
pub struct Compiling {
    /// The resources as they change.
    pub resources: watch::Receiver<Current>,
    /// They change no more.
    pub resources_ended: bool,
    /// Where their problems are; `None` without a directory.
    pub source: Option<Arc<Source>>,
    /// The registrations as they change.
    pub registered: watch::Receiver<registry::All>,
    /// The key sets of issuers as they change.
    pub sets: watch::Receiver<Arc<KeySets>>,
    /// What the keys of sessions are made from.
    pub secret: Secret,
    /// Its trust bundle is pushed too.
    pub ca: Arc<Ca>,
    /// When that changes.
    pub trust: watch::Receiver<Arc<Active>>,
    /// What the streams push.
    pub view: watch::Sender<Arc<View>>,
    /// Which event of the store what is pushed reflects, also when that changed nothing.
    pub reflected: watch::Sender<Reflected>,
    /// What the statuses of the store's objects are made from.
    pub found: watch::Sender<Arc<Found>>,
    /// Problems of the last compile, for the API.
    pub problems: Arc<Mutex<Vec<Problem>>>,
    /// Told how long a compile takes.
    pub metrics: Metrics,
}

impl Compiling {
    /// Runs for as long as there are registrations to come.
    pub async fn run(mut self) {
        let key = (ResourceType::TrustBundle, self.ca.trust_domain().to_owned());
        let mut compiler = Compiler::new((key, Compiled::from(self.ca.bundle().encode_to_vec())), self.secret.clone());
        let mut debounce = Debounce::default();
        loop {
            self.publish(&mut compiler);
            debounce.pushed(Instant::now());
            if !debounce.settled(&mut self).await {
                return;
            }
        }
    }

    fn publish(&mut self, compiler: &mut Compiler) {
        let Current { resources, revision } = self.resources.borrow_and_update().clone();
        let registered = Arc::clone(&self.registered.borrow_and_update());
        self.trust.mark_unchanged();
        let trust = compiler.set_always(Compiled::from(self.ca.bundle().encode_to_vec()));
        // Statuses are events too, and nothing is made of them.
        let sets = Arc::clone(&self.sets.borrow_and_update());
        if trust || !compiler.holds(&resources, &registered, &sets) {
            self.compiled(compiler, (&resources, &registered, &sets), revision);
        }
        // After the view: nobody is told of an event that is not in what the streams see.
        self.reflected.send_replace(Reflected { view: self.view.borrow().revision, store: revision });
    }

    fn compiled(
        &self,
        compiler: &mut Compiler,
        (resources, registered, sets): (&Arc<Resources>, &registry::All, &Arc<KeySets>),
        revision: Revision,
    ) {
        let started = Instant::now();
        let (output, found) = compiler.compile(resources, registered, sets);
        self.metrics.compiled(started.elapsed());
        self.found.send_if_modified(|told| {
            // Endpoints are in no status.
            let old = &told.resources;
            let same = only_slices(old, resources) && old.left_out == resources.left_out && told.problems == found;
            if !same {
                *told = Arc::new(Found { resources: Arc::clone(resources), problems: found.to_vec() });
            }
            !same
        });
        let mut all = self.source.as_ref().map(|source| source.problems()).unwrap_or_default();
        all.extend(resources.problems.iter().chain(found).cloned());
        for problem in &all {
            tracing::debug!(%problem, "resource problem");
        }
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = all;
        self.view.send_if_modified(|current| {
            let next = current.next(output, revision);
            let changed = next.is_change();
            if changed {
                *current = Arc::new(next);
            }
            changed
        });
    }
}

impl Changes for Compiling {
    async fn changed(&mut self) -> bool {
        loop {
            tokio::select! {
                changed = self.resources.changed(), if !self.resources_ended => match changed {
                    Ok(()) => return true,
                    Err(_) => self.resources_ended = true,
                },
                changed = self.registered.changed() => return changed.is_ok(),
                // They change for as long as resources do.
                Ok(()) = self.sets.changed() => return true,
                // It goes with the process.
                Ok(()) = self.trust.changed() => return true,
            }
        }
    }
}
