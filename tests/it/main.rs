//! Whole-mesh tests with the real command: a control plane, workloads behind `weft run`, real programs, and the
//! sidecars' own metrics as witnesses. Nothing here needs the network; only `transparent` needs root. A test whose program is not installed
//! is left out and says so ([`needs`]).

mod apps;
mod authorization;
mod basics;
mod bulk;
mod bypass;
mod certificates;
mod cluster;
mod cold_start;
mod demo;
mod enrolment;
mod foreign;
mod half_close;
mod http2;
mod inject;
mod jwt;
mod mesh;
mod messages;
mod metrics;
mod needs;
mod net;
mod observe;
mod operate;
mod process;
mod python;
mod resilience;
mod rotation;
mod routes;
mod run;
mod servers;
mod spans;
mod transparent;
mod truncation;
mod tunnels;
