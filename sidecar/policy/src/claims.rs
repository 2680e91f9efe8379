//! Claims of a verified token in the form in which rules ask for them: flat names, lists of texts, bounded. Who verifies
//! the token fills it; nothing here is true before that.

/// Values of one token.
pub const MAX_CLAIM_VALUES: usize = 512;
/// Bytes of all names and values of one token.
pub const MAX_CLAIM_BYTES: usize = 32 * 1024;

/// Flattened claims. The members of an object are named `outer.inner`; a list has each of its elements as a value; numbers
/// and booleans are their JSON text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claims(Box<[(Box<str>, Box<str>)]>);

/// More than [`MAX_CLAIM_VALUES`] values or [`MAX_CLAIM_BYTES`] bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the token has more than {MAX_CLAIM_VALUES} claim values or {MAX_CLAIM_BYTES} bytes of them")]
pub struct TooManyClaims;

impl Claims {
    /// From pairs of name and value, in any order; a name that has several values is there once for each.
    ///
    /// # Errors
    /// When there are too many, or they are too long together: such a token is to be refused, because a rule that denies
    /// might look for what was left out.
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, TooManyClaims>
    where
        N: Into<Box<str>>,
        V: Into<Box<str>>,
    {
        let (mut found, mut bytes) = (Vec::new(), 0_usize);
        for (name, value) in pairs {
            let (name, value) = (name.into(), value.into());
            bytes = bytes.saturating_add(name.len()).saturating_add(value.len());
            if bytes > MAX_CLAIM_BYTES || found.len() == MAX_CLAIM_VALUES {
                return Err(TooManyClaims);
            }
            found.push((name, value));
        }
        // Values of one name keep their order.
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Self(found.into()))
    }

    /// The values of a claim; none when the token does not have it.
    pub fn get<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let from = self.0.partition_point(|(known, _)| **known < *name);
        let to = self.0.partition_point(|(known, _)| **known <= *name);
        self.0.get(from..to).unwrap_or_default().iter().map(|(_, value)| &**value)
    }

    /// Every name with a value, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_all_its_values_in_their_order() {
        let claims = Claims::new([("groups", "b"), ("realm.role", "admin"), ("groups", "a"), ("sub", "ann")]).unwrap();
        assert_eq!(claims.get("groups").collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(claims.get("realm.role").collect::<Vec<_>>(), ["admin"]);
        for missing in ["", "realm", "group", "groups.0", "t"] {
            assert_eq!(claims.get(missing).count(), 0, "{missing}");
        }
        assert_eq!(claims.iter().count(), 4);
    }

    #[test]
    fn too_many_claims_are_refused_and_not_cut() {
        let many = |count| Claims::new((0..count).map(|number: usize| (number.to_string(), "")));
        assert!(many(MAX_CLAIM_VALUES).is_ok());
        assert_eq!(many(MAX_CLAIM_VALUES + 1), Err(TooManyClaims));
        let long = |length| Claims::new([("a", "b".repeat(length))]);
        assert!(long(MAX_CLAIM_BYTES - 1).is_ok());
        assert_eq!(long(MAX_CLAIM_BYTES), Err(TooManyClaims));
    }
}
