//! Tokens that were verified, so that one that comes again costs no signature check. Bounded; entries end with their
//! tokens, and the cache ends with the configuration that it belongs to. What was refused is not kept: nobody without a
//! valid token can push out one that is.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use aws_lc_rs::digest::{self, SHA256};

use super::Verified;

/// Tokens of one worker and policy; the one that was verified first makes room.
pub const MAX_ENTRIES: usize = 256;

/// A hash of the whole token, its signature included: no two tokens have the same.
type Hash = [u8; 32];

/// Verified tokens.
#[derive(Default)]
pub struct Cache {
    entries: HashMap<Hash, Rc<Verified>>,
    order: VecDeque<Hash>,
}

/// The key of a token.
pub fn hash(token: &[u8]) -> Option<Hash> {
    digest::digest(&SHA256, token).as_ref().try_into().ok()
}

impl Cache {
    /// What was verified of the token, if it still counts. `now` is in seconds since the Unix epoch.
    pub fn get(&self, key: Option<&Hash>, now: f64) -> Option<&Rc<Verified>> {
        self.entries.get(key?).filter(|verified| now < verified.until)
    }

    /// Keeps a token.
    pub fn put(&mut self, key: Option<Hash>, verified: &Rc<Verified>) {
        let Some(key) = key else { return };
        if self.entries.insert(key, Rc::clone(verified)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MAX_ENTRIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
