//! One condition at one call. Every condition is read in the way that lets in less: `action` tells which that is. What is
//! missing (identity, token, Host) matches neither the values of a rule that allows nor their negation; methods, header
//! values and paths have one exact reading for what is allowed, and every reading that an app may have for what is denied.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};

use super::{Call, Caller, Operation, Seen, path};
use crate::model::{Action, Condition, ConditionKind, HostMatch, IdentityMatch, Network, TextMatch};

/// Whether the condition counts as met in a rule of this action.
pub fn holds(condition: &Condition, action: Action, call: &Call<'_>) -> bool {
    let negated = condition.negated;
    let operation = match (&condition.kind, call.seen) {
        (ConditionKind::Identities(values), _) => return identity(values, negated, action, call.caller),
        (ConditionKind::Networks(values), _) => {
            // Of a v6 socket, v4 peers have addresses in v6 form.
            let address = call.caller.address.to_canonical();
            return values.iter().any(|network| network.contains(address)) != negated;
        }
        (ConditionKind::Ports(values), _) => return values.contains(&call.port) != negated,
        (_, Seen::Opaque) => return action == Action::Deny,
        (_, Seen::BeforeRequests) => return action == Action::Allow,
        (_, Seen::Request(operation)) => operation,
    };
    of_request(condition, action, operation)
}

fn of_request(condition: &Condition, action: Action, operation: &Operation<'_>) -> bool {
    let negated = condition.negated;
    // What is to match as much as possible: values of what is denied, exceptions from what is allowed.
    let loose = (action == Action::Deny) != negated;
    match &condition.kind {
        ConditionKind::Methods(values) => {
            let asked = operation.method.as_str();
            let same = |known: &str| known == asked || loose && known.eq_ignore_ascii_case(asked);
            values.iter().any(|method| same(method.as_str())) != negated
        }
        ConditionKind::Paths(values) => {
            values.iter().any(|pattern| path::matches(pattern, operation.path, loose)) != negated
        }
        // Which site the app serves then is not known.
        ConditionKind::Hosts(_) if operation.host.host.is_empty() => action == Action::Deny,
        ConditionKind::Hosts(values) => values.iter().any(|known| known.matches(&operation.host.host)) != negated,
        ConditionKind::Header(name, values) => header(operation.headers, name, values, loose) != negated,
        ConditionKind::Claim(name, values) => match operation.claims {
            Some(claims) => claims.get(name).any(|value| any(values, value.as_bytes(), false)) != negated,
            None => negated && action == Action::Deny,
        },
        // Looked at above.
        ConditionKind::Identities(_) | ConditionKind::Networks(_) | ConditionKind::Ports(_) => action == Action::Deny,
    }
}

fn identity(values: &[IdentityMatch], negated: bool, action: Action, caller: &Caller<'_>) -> bool {
    // Whoever is excluded by name must not come in by leaving the name out.
    let Some(id) = caller.id else { return negated && action == Action::Deny };
    let same = |value: &IdentityMatch| match value {
        IdentityMatch::Any => true,
        IdentityMatch::Exact(known) => known == id,
        IdentityMatch::Prefix(prefix) => id.as_str().starts_with(&**prefix),
    };
    values.iter().any(same) != negated
}

/// Strictly, the header is there and each of its lines is one of the values, or each element of its list matches; loosely,
/// one line or one element matches. Lines with a name that some app takes for the same count as lines, but none of them
/// is the header.
fn header(headers: &HeaderMap, name: &HeaderName, values: &[TextMatch], loose: bool) -> bool {
    let separator = if *name == header::COOKIE { b';' } else { b',' };
    let elements = |line| <[u8]>::split(line, move |byte| *byte == separator).map(<[u8]>::trim_ascii);
    let mut lines =
        headers.iter().filter(|(other, _)| alike(name, other)).map(|(other, value)| (other == name, value.as_bytes()));
    if loose {
        return lines
            .any(|(_, line)| any(values, line, true) || elements(line).any(|element| any(values, element, true)));
    }
    // The beginning of a line says nothing of the rest of its list.
    let whole =
        |line: &[u8]| values.iter().any(|value| matches!(value, TextMatch::Exact(known) if known.as_bytes() == line));
    let mut there = false;
    lines.all(|(exact, line)| {
        there |= exact;
        whole(line) || elements(line).all(|element| any(values, element, false))
    }) && there
}

/// Whether a server that makes variables of fields (CGI, WSGI, PHP) may take these names for the same: `x_role` for
/// `x-role`.
fn alike(name: &HeaderName, other: &HeaderName) -> bool {
    let (name, other) = (name.as_str().as_bytes(), other.as_str().as_bytes());
    let same = |(a, b): (&u8, &u8)| a == b || !a.is_ascii_alphanumeric() && !b.is_ascii_alphanumeric();
    name.len() == other.len() && name.iter().zip(other).all(same)
}

fn any(values: &[TextMatch], text: &[u8], loose: bool) -> bool {
    let same =
        |known: &str, part: &[u8]| known.as_bytes() == part || loose && known.as_bytes().eq_ignore_ascii_case(part);
    values.iter().any(|value| match value {
        TextMatch::Exact(known) => same(known, text),
        TextMatch::Prefix(known) => text.get(..known.len()).is_some_and(|start| same(known, start)),
    })
}

impl HostMatch {
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(known) => **known == *host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }
}

impl Network {
    /// Whether the address, in its canonical form, is one of these.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let rest = 32_u32.saturating_sub(self.bits.into());
                let shifted = |bits: u32| bits.checked_shr(rest).unwrap_or(0);
                shifted(network.to_bits()) == shifted(address.to_bits())
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let rest = 128_u32.saturating_sub(self.bits.into());
                let shifted = |bits: u128| bits.checked_shr(rest).unwrap_or(0);
                shifted(network.to_bits()) == shifted(address.to_bits())
            }
            _ => false,
        }
    }
}
