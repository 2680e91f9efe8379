//! Places for who looks at live traffic: so many in all, and so many with one token, so that none takes the room of the
//! others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::api::status::ApiError;

/// Places. Clones share them.
#[derive(Clone)]
pub struct Places(Arc<Inner>);

struct Inner {
    most: usize,
    of_one: usize,
    /// By name of the caller; those who have none are left out.
    taken: Mutex<HashMap<String, usize>>,
}

/// A place that is taken; its drop gives it back.
pub struct Place {
    places: Places,
    name: String,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// All are taken.
    ForAll,
    /// This caller has as many as it may.
    ForOne(usize),
}

impl Full {
    /// The answer: 429, with what there are too many of.
    #[must_use]
    pub fn error(self, what: &str) -> ApiError {
        match self {
            Self::ForAll => ApiError::too_many(what),
            Self::ForOne(most) => ApiError::too_many(&format!("{what} of yours, of which there may be {most},")),
        }
    }
}

impl Places {
    /// So many in all, and of one caller.
    #[must_use]
    pub fn new((most, of_one): (usize, usize)) -> Self {
        Self(Arc::new(Inner { most, of_one, taken: Mutex::default() }))
    }

    /// A place for this caller.
    ///
    /// # Errors
    /// When there is none for it.
    pub fn take(&self, name: &str) -> Result<Place, Full> {
        let mut taken = self.taken();
        if taken.values().sum::<usize>() >= self.0.most {
            return Err(Full::ForAll);
        }
        let own = taken.get(name).copied().unwrap_or(0);
        if own >= self.0.of_one {
            return Err(Full::ForOne(self.0.of_one));
        }
        taken.insert(name.to_owned(), own + 1);
        Ok(Place { places: self.clone(), name: name.to_owned() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_room_for_others_and_all_of_them_are_bounded() {
        let places = Places::new((5, 2));
        let mut held: Vec<Place> = (0..2).map(|_| places.take("a").expect("room")).collect();
        assert_eq!(places.take("a").err(), Some(Full::ForOne(2)));
        held.extend(["b", "b", "c"].map(|name| places.take(name).expect("room for others")));
        assert_eq!(places.take("d").err(), Some(Full::ForAll));
        drop(held.remove(0));
        assert_eq!(places.take("b").err(), Some(Full::ForOne(2)));
        held.push(places.take("a").expect("it gave one back"));
        drop(held);
        assert!(places.taken().is_empty(), "nobody is remembered");
    }
}
