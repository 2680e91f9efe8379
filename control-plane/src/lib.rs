//! The control plane of Weft.

pub mod compile;
pub mod source;
