//! What a request has shown of tokens, kept while it is in flight: when a RequestAuthentication changes, what it let in is
//! asked again.

use std::{
    rc::Rc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;
use weft_policy::claims::Claims;

use super::{Authenticator, Flaw};
use crate::error::Reason;

/// The fields in which a token could be, of one request. Values are counted, not copied.
pub struct Shown {
    authenticators: Rc<[Rc<Authenticator>]>,
    fields: SmallVec<[(HeaderName, HeaderValue); 1]>,
    /// When it was let in: that a token ends later is no reason to end what it let in.
    at: Option<Duration>,
}

impl Shown {
    /// Of a head that nothing was removed from yet. `at` is the time since the Unix epoch, where a token is looked at.
    pub fn new(authenticators: &Rc<[Rc<Authenticator>]>, head: &HeaderMap, at: Option<Duration>) -> Self {
        let mut fields = SmallVec::new();
        let mut keep = |name: &HeaderName| {
            fields.extend(head.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        };
        // Where nobody looks yet, most would look later.
        keep(&header::AUTHORIZATION);
        for (index, authenticator) in authenticators.iter().enumerate() {
            let before = |place| authenticators.iter().take(index).any(|other| other.places.contains(place));
            authenticator
                .places
                .iter()
                .filter(|place| **place != header::AUTHORIZATION && !before(place))
                .for_each(&mut keep);
        }
        Self { authenticators: Rc::clone(authenticators), fields, at }
    }

    /// The claims of the token under these authenticators; `claims` are those that were found before.
    ///
    /// # Errors
    /// Why they do not let the request in. What was not kept of it is not known: such a request is not let in.
    pub fn again(
        &self,
        authenticators: &Rc<[Rc<Authenticator>]>,
        claims: Option<&Rc<Claims>>,
    ) -> Result<Option<Rc<Claims>>, Reason> {
        let same = |(a, b): (&Rc<Authenticator>, &Rc<Authenticator>)| Rc::ptr_eq(a, b);
        if authenticators.len() == self.authenticators.len()
            && authenticators.iter().zip(self.authenticators.iter()).all(same)
        {
            return Ok(claims.cloned());
        }
        let kept = |place| self.authenticators.iter().any(|known| known.places.contains(place));
        let mut places = authenticators.iter().flat_map(|authenticator| &authenticator.places);
        if places.any(|place| *place != header::AUTHORIZATION && !kept(place)) {
            return Err(Reason::RbacDenied);
        }
        let mut head = HeaderMap::new();
        for (name, value) in &self.fields {
            head.append(name, value.clone());
        }
        let at =
            self.at.unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let mut found = None;
        for authenticator in authenticators.iter() {
            match authenticator.token(&head, at) {
                Ok(Some((verified, _))) => found = Some(Rc::clone(&verified.claims)),
                Ok(None) if authenticator.config.required => {
                    return Err(authenticator.refuse(Flaw::Missing).error.reason);
                }
                Ok(None) => {}
                Err(flaw) => return Err(authenticator.refuse(flaw).error.reason),
            }
        }
        Ok(found)
    }
}
