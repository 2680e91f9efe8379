//! Public keys of issuers of JSON Web Tokens, which policies name by URL: fetched by the control plane alone, beside
//! compiling and never in it, and pushed to the sidecars with the policies. What is fetched is a tenant's choice of URL:
//! `address` says where none may lead, `fetch` bounds what comes back, `follow` decides when, `kept` survives a restart.

mod address;
mod fetch;
mod follow;
mod kept;
pub mod keys;
#[cfg(test)]
mod testing;

use std::{collections::BTreeMap, sync::Arc};

use weft_proto::v1;

pub use self::{
    fetch::{Client, check_url},
    follow::{Fetching, Times},
    kept::Kept,
};

/// URLs of one control plane; more are not fetched.
pub const MAX_URLS: usize = 256;

/// What is known of each URL.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySets(BTreeMap<String, KeySet>);

/// The keys behind one URL.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySet {
    /// As they came the last time; `None`: never, or too long ago.
    pub keys: Option<Arc<[v1::JwtKey]>>,
    /// Why the last attempt has failed.
    pub trouble: Option<String>,
}

impl KeySets {
    /// The keys behind a URL.
    ///
    /// # Errors
    /// Why there are none.
    pub fn keys(&self, url: &str) -> Result<&[v1::JwtKey], String> {
        let Some(set) = self.0.get(url) else { return Err("they were not fetched yet".to_owned()) };
        let why = || set.trouble.clone().unwrap_or_else(|| "they were not fetched yet".to_owned());
        set.keys.as_deref().ok_or_else(why)
    }
}
