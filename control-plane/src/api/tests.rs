//! The API over a store in memory, request by request.

pub mod common;
mod files;
mod history;
mod hostile;
mod lists;
mod mesh;
mod writes;
