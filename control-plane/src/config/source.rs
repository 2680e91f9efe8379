//! Flags that say where configuration and endpoints come from.

use std::path::PathBuf;

/// Where the objects live.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum SourceKind {
    /// In the control plane's own store and its files
    #[default]
    Store,
    /// In the API server of a cluster
    Kubernetes,
}

/// Where configuration and endpoints come from.
#[derive(Clone, Debug, clap::Args)]
pub struct SourceArgs {
    /// Where the objects live; in a cluster its API server has them, and the operator API only shows them
    #[arg(long, value_enum, default_value = "store")]
    pub source: SourceKind,
    /// How to reach the cluster, also for its word on the tokens of workloads that enrol [default: --kubernetes-api, or
    /// the pod's own account]
    #[arg(long, value_name = "FILE", conflicts_with = "kubernetes_api")]
    pub kubeconfig: Option<PathBuf>,
}
