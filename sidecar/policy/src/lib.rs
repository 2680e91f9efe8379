//! Pure decisions of the mesh, shared by the sidecar and the control plane: the immutable model, the only
//! conversion from the wire, matching, balancing, retry, canonicalisation. No I/O, clock, randomness or runtime:
//! time and random numbers are arguments.

pub mod authorize;
pub mod balance;
pub mod breaker;
pub mod canonical;
pub mod circuit;
pub mod claims;
pub mod convert;
pub mod cors;
pub mod deadline;
pub mod fault;
pub mod fields;
pub mod filter;
pub mod grpc;
pub mod limits;
pub mod model;
pub mod outlier;
pub mod pattern;
pub mod rate;
pub mod retry;
pub mod routing;
pub mod session;
pub mod spiffe;
pub mod trace;

pub use spiffe::SpiffeId;
