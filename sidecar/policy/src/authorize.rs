//! Whether a connection or a request is let in, without allocation. DENY goes before ALLOW; with an ALLOW that is no dry
//! run, what none of them matches is refused.
//!
//! Where something is not known, or could be read in more than one way, a rule that denies matches and a rule that allows
//! does not: see `conditions`.

mod conditions;
mod path;

use std::net::IpAddr;

use http::{HeaderMap, Method};

use crate::{
    SpiffeId,
    canonical::Authority,
    claims::Claims,
    model::{Action, AuthorizationPolicy, AuthorizationRule},
};

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The identity that the peer proved in TLS; `None` in plaintext.
    pub id: Option<&'a SpiffeId>,
    /// The peer's address.
    pub address: IpAddr,
}

/// What is asked for: the canonical request, as it is forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// Method.
    pub method: &'a Method,
    /// Canonical path, without the query.
    pub path: &'a str,
    /// Canonical host; empty only in HTTP/1.0 without Host.
    pub host: &'a Authority,
    /// Canonical header fields.
    pub headers: &'a HeaderMap,
    /// Claims of a verified token; `None`: there is no token.
    pub claims: Option<&'a Claims>,
}

/// What becomes of a connection or a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict<'a> {
    /// It is let in.
    Allowed,
    /// It is refused.
    Denied {
        /// The policy that denies it, `namespace/name`; `None`: there are policies that allow, and none of them matched.
        policy: Option<&'a str>,
    },
}

/// A verdict, and what policies on trial say. Names are for logs and metrics, never for the caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision<'a> {
    /// What becomes of it.
    pub verdict: Verdict<'a>,
    /// The first policy in dry run that would refuse it if all policies were in force.
    pub shadow: Option<&'a str>,
}

impl Decision<'_> {
    /// Whether it is let in.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allowed)
    }
}

/// The policies of one port. The default has none: everyone is let in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Authorization {
    /// Those that deny first, otherwise in the given order.
    policies: Vec<AuthorizationPolicy>,
    /// Whether one of them allows and is in force.
    selected: bool,
    /// Whether one of them looks at requests.
    of_requests: bool,
}

/// What is known of a call.
#[derive(Clone, Copy)]
struct Call<'a> {
    caller: &'a Caller<'a>,
    port: u16,
    seen: Seen<'a>,
}

/// How far a call has come.
#[derive(Clone, Copy)]
enum Seen<'a> {
    /// Bytes that nobody looks into.
    Opaque,
    /// A connection on which requests will come.
    BeforeRequests,
    /// A request.
    Request(&'a Operation<'a>),
}

impl Authorization {
    /// The engine of these policies.
    #[must_use]
    pub fn new(mut policies: Vec<AuthorizationPolicy>) -> Self {
        policies.sort_by_key(|policy| policy.action == Action::Allow);
        Self {
            selected: policies.iter().any(|policy| policy.action == Action::Allow && !policy.dry_run),
            of_requests: policies.iter().any(AuthorizationPolicy::of_requests),
            policies,
        }
    }

    /// The policies, those that deny first.
    #[must_use]
    pub fn policies(&self) -> &[AuthorizationPolicy] {
        &self.policies
    }

    /// Whether a policy, be it in dry run, looks at requests. If none does, [`Self::connection`] decides for all requests
    /// of a connection too.
    #[must_use]
    pub const fn has_request_rules(&self) -> bool {
        self.of_requests
    }

    /// Decides on opaque bytes to this port of the app. Conditions on requests cannot be looked at: with one, a rule that
    /// allows does not match, and one that denies matches when the rest of it does.
    #[must_use]
    pub fn connection(&self, caller: &Caller<'_>, port: u16) -> Decision<'_> {
        self.decide(Call { caller, port, seen: Seen::Opaque })
    }

    /// Decides on a connection on which requests will come: refused only if each of them would be, whatever it asks for.
    /// What dry runs say is told of the requests, not here.
    #[must_use]
    pub fn before_requests(&self, caller: &Caller<'_>, port: u16) -> Decision<'_> {
        Decision { shadow: None, ..self.decide(Call { caller, port, seen: Seen::BeforeRequests }) }
    }

    /// Decides on a request to this port of the app.
    #[must_use]
    pub fn request(&self, caller: &Caller<'_>, port: u16, operation: &Operation<'_>) -> Decision<'_> {
        self.decide(Call { caller, port, seen: Seen::Request(operation) })
    }

    fn decide(&self, call: Call<'_>) -> Decision<'_> {
        let (mut denied, mut shadow) = (None, None);
        let (mut allowed, mut on_trial) = (false, None);
        for policy in &self.policies {
            let name = policy.name.as_str();
            match (policy.action, policy.dry_run) {
                (Action::Deny, false) if denied.is_none() && policy.matches(&call) => denied = Some(name),
                (Action::Deny, true) if shadow.is_none() && policy.matches(&call) => shadow = Some(name),
                (Action::Allow, false) => allowed = allowed || policy.matches(&call),
                (Action::Allow, true) if on_trial != Some(None) => {
                    // `Some(None)`: one of them lets it in.
                    on_trial = if policy.matches(&call) { Some(None) } else { on_trial.or(Some(Some(name))) };
                }
                _ => {}
            }
        }
        // As if those on trial were in force: without one that allows, the first of them stands for all.
        let shadow = shadow.or_else(|| on_trial.flatten().filter(|_| !allowed));
        let verdict = match denied {
            Some(_) => Verdict::Denied { policy: denied },
            None if self.selected && !allowed => Verdict::Denied { policy: None },
            None => Verdict::Allowed,
        };
        Decision { verdict, shadow }
    }
}

impl AuthorizationPolicy {
    fn of_requests(&self) -> bool {
        let groups = self.rules.iter().flat_map(|rule| &rule.groups);
        groups.flatten().flatten().any(|condition| condition.kind.of_requests())
    }

    fn matches(&self, call: &Call<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(self.action, call))
    }

    /// Whether it matches this request: for explanations.
    #[must_use]
    pub fn matches_request(&self, caller: &Caller<'_>, port: u16, operation: &Operation<'_>) -> bool {
        self.matches(&Call { caller, port, seen: Seen::Request(operation) })
    }

    /// Whether it matches these opaque bytes: for explanations.
    #[must_use]
    pub fn matches_connection(&self, caller: &Caller<'_>, port: u16) -> bool {
        self.matches(&Call { caller, port, seen: Seen::Opaque })
    }
}

impl AuthorizationRule {
    fn matches(&self, action: Action, call: &Call<'_>) -> bool {
        let holds = |set: &Vec<_>| set.iter().all(|condition| conditions::holds(condition, action, call));
        self.groups.iter().all(|group| group.iter().any(holds))
    }
}

#[cfg(test)]
mod tests;
