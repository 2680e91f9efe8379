//! Metrics of one process: a registry of series with typed labels, a snapshot of it, and the two text forms in which a
//! scraper reads that. Recording is an atomic add; locks are taken only to make a handle and to read.
//!
//! Who owns a series keeps its handle. What is not owned any more stays for [`IDLE`] and then goes, so that a scraper sees
//! its last value; the number of series is capped, and what is beyond the cap shares one series for each set.

mod exemplar;
mod histogram;
pub mod process;
mod registry;
mod snapshot;
#[cfg(test)]
mod tests;
mod text;

pub use exemplar::{Exemplar, TraceId};
pub use histogram::{BOUNDS, Histogram, HistogramValue};
pub use registry::{IDLE, MAX_SERIES, OVERFLOW, Registry, Series, Timing};
pub use snapshot::{Collector, Family, Kind, Labels, Sample, Snapshot, Value, float};
pub use text::Format;
