//! Retries and circuits with real processes: backends that fail in every way, callers that count what they get.

mod backend;
mod bodies;
mod breaker;
mod deadlines;
mod load;
mod posts;
mod races;
mod sick;

use std::net::SocketAddr;

use self::backend::Backend;

/// Where these listen.
fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.address).collect()
}
