//! The data plane: one sidecar beside one workload. `app` builds the parts; a request's life is in `outbound` and
//! `inbound`.

pub mod admin;
pub mod app;
pub mod config;
pub mod detect;
pub mod discovery;
pub mod dns;
pub mod drain;
pub mod egress;
pub mod error;
mod first;
pub mod harden;
pub mod health;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod listener;
pub mod live;
pub mod observe;
pub mod opaque;
pub mod outbound;
pub mod probe;
pub mod readiness;
pub mod snapshot;
pub mod state;
pub mod telemetry;
pub mod token;
pub mod tunnel;
pub mod upstream;
pub mod virtual_ips;
