//! The data plane: one sidecar beside one workload. `app` builds the parts; a request's life is in `outbound` and
//! `inbound`.

pub mod error;
pub mod telemetry;
