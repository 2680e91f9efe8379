//! The wire contract between sidecar and control plane: messages, and with the `grpc` feature the services.
//! Owns no behaviour; conversion into the model is weft-policy's.

#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used, missing_docs)] // generated code
mod generated {
    include!(concat!(env!("OUT_DIR"), "/weft_proto.rs"));
}

pub use generated::envoy::config::core::v3 as core;
pub use generated::envoy::service::discovery::v3 as discovery;
pub use generated::google::{protobuf::Any, rpc};
pub use generated::weft::identity::v1 as identity;
pub use generated::weft::v1;

/// A resource type of the discovery stream.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ResourceType {
    /// `weft.v1.EndpointSlice`
    EndpointSlice,
    /// `weft.v1.Service`
    Service,
    /// `weft.v1.TrustBundle`
    TrustBundle,
    /// `weft.v1.WorkloadConfig`
    WorkloadConfig,
}

impl ResourceType {
    /// Every type, in the order in which a server pushes: what others refer to comes first.
    pub const ALL: [Self; 4] = [Self::TrustBundle, Self::WorkloadConfig, Self::EndpointSlice, Self::Service];

    /// The type URL of the discovery protocol.
    #[must_use]
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::EndpointSlice => "type.googleapis.com/weft.v1.EndpointSlice",
            Self::Service => "type.googleapis.com/weft.v1.Service",
            Self::TrustBundle => "type.googleapis.com/weft.v1.TrustBundle",
            Self::WorkloadConfig => "type.googleapis.com/weft.v1.WorkloadConfig",
        }
    }

    /// The short name, for tables and metric labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointSlice => "EndpointSlice",
            Self::Service => "Service",
            Self::TrustBundle => "TrustBundle",
            Self::WorkloadConfig => "WorkloadConfig",
        }
    }

    /// The type with this URL, if it is one of ours.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}
