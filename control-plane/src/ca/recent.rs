//! Which certificates were issued and are still valid, by identity and end, which is what a stream tells of the one that
//! its sidecar has now. Bounded: what does not fit is not known, and counts as old.

use std::collections::HashMap;

use weft_policy::SpiffeId;

use super::presented::Serial;

/// Certificates that are remembered.
const MAX: usize = 50_000;

/// One that was issued.
#[derive(Clone, Debug)]
pub struct Recent {
    /// Its serial number.
    pub serial: Serial,
    /// The key that signed it.
    pub issuer: Vec<u8>,
}

/// Those that were issued by this process.
#[derive(Default)]
pub struct Recents {
    /// Replicas of one identity may have got theirs in the same second.
    by_end: HashMap<(SpiffeId, i64), Vec<Recent>>,
    count: usize,
    /// Additions until those that have ended are looked for again.
    sweep_in: usize,
}

impl Recents {
    /// One more.
    pub fn add(&mut self, id: &SpiffeId, end: i64, recent: Recent, now: i64) {
        self.sweep_in = self.sweep_in.saturating_sub(1);
        if self.sweep_in == 0 {
            self.by_end.retain(|(_, end), _| *end > now);
            self.count = self.by_end.values().map(Vec::len).sum();
            // So that sweeping costs little for each, also when all of them are still valid.
            self.sweep_in = self.count.clamp(1024, MAX / 8);
        }
        if self.count < MAX {
            self.by_end.entry((id.clone(), end)).or_default().push(recent);
            self.count += 1;
        }
    }

    /// Those of this identity that end then.
    pub fn ending(&self, id: &SpiffeId, end: i64) -> &[Recent] {
        self.by_end.get(&(id.clone(), end)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whose certificate this is, and its end.
    pub fn owner(&self, serial: &Serial) -> Option<(&SpiffeId, i64)> {
        let mut all = self.by_end.iter();
        all.find(|(_, recents)| recents.iter().any(|of| of.serial == *serial)).map(|((id, end), _)| (id, *end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_have_ended_make_room_and_there_is_a_bound() {
        let mut recents = Recents::default();
        let id = SpiffeId::workload("td", "shop", "catalog").expect("valid");
        let recent = |number: i64| Recent { serial: Serial::new(&number.to_be_bytes()), issuer: vec![1] };
        for end in 1..100_000 {
            recents.add(&id, end, recent(end), end - 10);
        }
        assert!(recents.count <= 2048, "{}", recents.count);
        assert_eq!(recents.owner(&Serial::new(&99_999_i64.to_be_bytes())), Some((&id, 99_999)));
        assert!(recents.ending(&id, 99_999).len() == 1 && recents.ending(&id, 5).is_empty());
        recents.add(&id, 99_999, recent(7), 0);
        assert_eq!(recents.ending(&id, 99_999).len(), 2, "of the same second");
        for end in 200_000..300_000 {
            recents.add(&id, end, recent(end), 0);
        }
        assert_eq!(recents.count, recents.by_end.values().map(Vec::len).sum::<usize>());
        assert!(recents.count <= MAX);
    }
}
