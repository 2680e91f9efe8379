//! Tests of the control plane as a program: over its sockets, with a real client library, killed at any moment, with a
//! full disk and with whatever is sent.

mod authority;
mod control_plane;
mod enrolment;
mod full_disk;
mod history;
mod hostile;
mod http;
mod kills;
mod ledger;
mod left_out;
mod python;
mod sidecar;
mod writers;
