//! The resources of `--resources DIR`: loads its YAML files, keeps the last good state of each, follows changes.

mod check;
mod de;
pub mod files;
mod instead;
mod load;
pub mod pods;
pub mod policies;
mod problem;
pub(crate) mod routes;
pub mod stored;
mod validate;
mod watch;
mod yaml;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use gateway_api::apis::{
    experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute},
    standard::referencegrants::ReferenceGrant,
};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};

pub(crate) use self::check::{duration, is_dns_label, label_value, qualified_name};
pub use self::files::Files;
pub(crate) use self::load::{HasMetadata, Loaded, schema};
use self::policies::{
    Custom,
    jwt::RequestAuthenticationSpec,
    limits::{FaultInjectionSpec, RateLimitPolicySpec},
    mesh::MeshConfigSpec,
    security::{AuthorizationPolicySpec, PeerAuthenticationSpec},
    telemetry::TelemetryPolicySpec,
    traffic::TrafficPolicySpec,
    workload::WorkloadSpec,
};
pub use self::problem::{Origin, Problem, Reason, did_you_mean};
use crate::store::{Key, Stored};

/// The trust domain when none is configured.
const DEFAULT_TRUST_DOMAIN: &str = "weft.local";

/// One object and where it was written.
#[derive(Clone, Debug)]
pub struct Object<T> {
    /// Namespace; empty for a `Namespace`.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The object.
    pub value: T,
    /// Where it was written.
    pub origin: Arc<Origin>,
}

impl<T> Object<T> {
    /// `namespace/name`, or the name of an object without a namespace.
    #[must_use]
    pub fn id(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

/// `weft.dev/v1alpha1` `Workload`: one instance of a service outside Kubernetes.
pub type Workload = Custom<WorkloadSpec>;

/// Everything that was loaded, by `namespace/name` (a `Namespace` by its name). Clones share the objects.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Trust domain of the SPIFFE ids of `Workload` objects.
    pub trust_domain: String,
    /// `v1` Namespace.
    pub namespaces: BTreeMap<String, Arc<Object<Namespace>>>,
    /// `v1` Service.
    pub services: BTreeMap<String, Arc<Object<Service>>>,
    /// `discovery.k8s.io/v1` EndpointSlice.
    pub endpoint_slices: BTreeMap<String, Arc<Object<EndpointSlice>>>,
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    pub routes: BTreeMap<String, Arc<Object<HttpRoute>>>,
    /// `gateway.networking.k8s.io/v1` GRPCRoute.
    pub grpc_routes: BTreeMap<String, Arc<Object<GrpcRoute>>>,
    /// `gateway.networking.k8s.io/v1` ReferenceGrant.
    pub reference_grants: BTreeMap<String, Arc<Object<ReferenceGrant>>>,
    /// `weft.dev/v1alpha1` Workload.
    pub workloads: BTreeMap<String, Arc<Object<Workload>>>,
    /// `weft.dev/v1alpha1` TrafficPolicy.
    pub traffic_policies: BTreeMap<String, Arc<Object<Custom<TrafficPolicySpec>>>>,
    /// `weft.dev/v1alpha1` AuthorizationPolicy.
    pub authorization_policies: BTreeMap<String, Arc<Object<Custom<AuthorizationPolicySpec>>>>,
    /// `weft.dev/v1alpha1` PeerAuthentication.
    pub peer_authentications: BTreeMap<String, Arc<Object<Custom<PeerAuthenticationSpec>>>>,
    /// `weft.dev/v1alpha1` RateLimitPolicy.
    pub rate_limit_policies: BTreeMap<String, Arc<Object<Custom<RateLimitPolicySpec>>>>,
    /// `weft.dev/v1alpha1` FaultInjection.
    pub fault_injections: BTreeMap<String, Arc<Object<Custom<FaultInjectionSpec>>>>,
    /// `weft.dev/v1alpha1` TelemetryPolicy.
    pub telemetry_policies: BTreeMap<String, Arc<Object<Custom<TelemetryPolicySpec>>>>,
    /// `weft.dev/v1alpha1` RequestAuthentication.
    pub request_authentications: BTreeMap<String, Arc<Object<Custom<RequestAuthenticationSpec>>>>,
    /// `weft.dev/v1alpha1` MeshConfig.
    pub mesh_configs: BTreeMap<String, Arc<Object<Custom<MeshConfigSpec>>>>,
    /// The pods of the cluster that this is the configuration of; `None` outside of one. In a cluster the endpoints of every
    /// Service are those of its EndpointSlices.
    pub pods: Option<Arc<pods::Pods>>,
    /// What was left out when objects of several sources were put together.
    pub problems: Vec<Problem>,
    /// The same for objects of the store, by their keys.
    pub left_out: BTreeMap<Key, LeftOut>,
}

/// An object of the store that is not among the resources: no longer valid, or one of a file has its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeftOut {
    /// Its uid and generation.
    pub of: (Option<String>, Option<i64>),
    /// Why.
    pub problem: Problem,
}

impl Resources {
    /// No resources, in this trust domain.
    #[must_use]
    pub fn of(trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.to_owned(), ..Self::default() }
    }

    /// The resources of one text, as if it were the only file; for tests and dry runs.
    #[must_use]
    pub fn from_text(file: &str, text: &str) -> (Self, Vec<Problem>) {
        let (mut resources, mut problems) = (Self::of(DEFAULT_TRUST_DOMAIN), Vec::new());
        match load::objects(&file.into(), text) {
            Ok(objects) => objects.into_iter().for_each(|(object, _)| object.insert(&mut resources, &mut problems)),
            Err(found) => problems = found,
        }
        (resources, problems)
    }
}

/// The object of a JSON tree, and what is wrong with it. Problems have no line.
pub(crate) fn from_json(value: &serde_json::Value) -> Loaded {
    load::object(&Arc::default(), &yaml::Node::from(value))
}

/// The same, with problems of this place.
pub(crate) fn from_json_at(place: &str, value: &serde_json::Value) -> Loaded {
    load::object(&place.into(), &yaml::Node::from(value))
}

/// The documents of a YAML text as JSON trees.
///
/// # Errors
/// When it is not YAML, with the place.
pub(crate) fn yaml_to_json(text: &str) -> Result<Vec<serde_json::Value>, Problem> {
    Ok(yaml::parse(&Arc::default(), text)?.iter().map(serde_json::Value::from).collect())
}

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not there, not readable or not a directory.
    #[error("read resources: {}: {error} (--resources takes a directory with .yaml files)", .path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The system does not let us watch.
    #[error("watch resources: {}: {error}", .path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: notify::Error,
    },
}

#[derive(Default)]
struct FileState {
    text: String,
    objects: Vec<(load::AnyObject, Arc<Stored>)>,
    /// Of a file that was never good.
    stand_ins: Vec<instead::StandIn>,
    problems: Vec<Problem>,
}

/// A directory of resources.
pub struct Source {
    directory: PathBuf,
    trust_domain: String,
    files: Mutex<BTreeMap<PathBuf, FileState>>,
    problems: Mutex<Vec<Problem>>,
    sender: tokio::sync::watch::Sender<Arc<Resources>>,
    written: tokio::sync::watch::Sender<Arc<Files>>,
}

impl Source {
    /// Loads the directory. Bad files do not fail it, see [`Source::problems`].
    pub fn open(directory: &Path, trust_domain: &str) -> Result<Self, SourceError> {
        let source = Self {
            directory: directory.to_owned(),
            trust_domain: trust_domain.to_owned(),
            files: Mutex::default(),
            problems: Mutex::default(),
            sender: tokio::sync::watch::Sender::new(Arc::default()),
            written: tokio::sync::watch::Sender::new(Arc::default()),
        };
        source.read(true)?;
        Ok(source)
    }

    /// The resources, now and after each change.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<Arc<Resources>> {
        self.sender.subscribe()
    }

    /// The same objects as they were written, now and after each change.
    pub fn files(&self) -> tokio::sync::watch::Receiver<Arc<Files>> {
        self.written.subscribe()
    }

    /// What is wrong with the files as they are now.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the directory again. A file with problems keeps its last good objects, a directory that cannot be read
    /// keeps everything.
    pub fn reload(&self) -> Result<(), SourceError> {
        self.read(false)
    }

    /// At the first start there is no last good state to keep: what could deny is stood in for.
    fn read(&self, first: bool) -> Result<(), SourceError> {
        let paths = self.list().map_err(|error| SourceError::Read { path: self.directory.clone(), error })?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let before = files.len();
        files.retain(|path, _| paths.contains(path));
        let mut changed = before != files.len();
        for path in paths {
            let state = files.entry(path.clone()).or_default();
            changed |= state.read(&path, first);
        }
        let mut resources = Resources { trust_domain: self.trust_domain.clone(), ..Resources::default() };
        let (mut problems, mut written) = (Vec::new(), Files::default());
        for state in files.values() {
            problems.extend_from_slice(&state.problems);
            for (object, as_written) in &state.objects {
                object.clone().insert(&mut resources, &mut problems);
                written.add(as_written);
            }
        }
        // After all others, which may have an object of the name.
        let stand_ins = files.values().flat_map(|state| &state.stand_ins);
        stand_ins.for_each(|stand_in| stand_in.insert(&mut resources, &mut problems));
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
        if changed || self.sender.borrow().trust_domain != self.trust_domain {
            self.written.send_replace(Arc::new(written));
            self.sender.send_replace(Arc::new(resources));
        }
        Ok(())
    }

    /// The YAML files, sorted. Names that start with a dot are editors' and mounts' own.
    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if yaml && !hidden && !path.is_dir() {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

impl FileState {
    /// Whether the objects or problems are now others. What was there from the first start and never good leaves
    /// stand-ins, until it is good.
    fn read(&mut self, path: &Path, first: bool) -> bool {
        let file: Arc<str> = path.to_string_lossy().into();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot be read: {error}");
                self.text.clear();
                self.problems = vec![Problem { file: file.to_string(), message, ..Problem::default() }];
                if first && error.kind() != io::ErrorKind::NotFound {
                    self.stand_ins.extend(instead::of_unreadable(&file, None));
                }
                return true;
            }
        };
        if text == self.text {
            return false;
        }
        match load::objects(&file, &text) {
            Ok(mut objects) => {
                // What ends by itself needs a beginning that a restart does not move.
                if let Ok(written) = std::fs::metadata(path).and_then(|metadata| metadata.modified()) {
                    objects.iter_mut().for_each(|(object, _)| object.began(written));
                }
                (self.objects, self.stand_ins, self.problems) = (objects, Vec::new(), Vec::new());
            }
            Err(problems) => {
                self.problems = problems;
                if first {
                    let rest = instead::of_file(&file, &text);
                    (self.objects, self.stand_ins) = (rest.good, rest.stand_ins);
                }
            }
        }
        self.text = text;
        true
    }
}

#[cfg(test)]
mod tests;
