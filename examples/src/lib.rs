//! Five small services that talk to each other the way real ones do: HTTP/1.1, gRPC and plain TCP, each with
//! keep-alive connections and no knowledge of the mesh. `weft demo` runs them behind sidecars.

pub mod catalog;
pub mod client;
pub mod context;
pub mod ledger;
pub mod orders;
pub mod payments;
mod serve;
pub mod storefront;

/// Types generated from `proto/payments.proto`.
#[allow(clippy::large_futures, clippy::cast_possible_truncation, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("weft.examples.v1");
}

#[cfg(test)]
mod tests;
