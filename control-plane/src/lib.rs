//! The control plane: resources in, configuration, discovery and trust out. `app` builds the parts.

pub mod api;
pub mod app;
pub mod beside;
pub mod ca;
pub mod compile;
pub mod config;
pub mod explain;
mod hexadecimal;
pub mod inject;
pub mod jwks;
pub mod kubernetes;
pub mod metrics;
pub mod observe;
pub mod push;
pub mod registry;
pub mod sessions;
pub mod source;
pub mod store;
pub mod traces;
