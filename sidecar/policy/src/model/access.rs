//! Who is let in at a port of the app: policies as parsed conditions. What they decide is `authorize`'s.

mod parse;

use std::net::IpAddr;

use http::{HeaderName, Method};

pub use self::parse::rule_header;
use super::ObjectName;
use crate::{SpiffeId, authorize::Authorization};

/// Who is let in at one port.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// Whether plaintext is taken.
    pub tls_mode: TlsMode,
    /// Whose connections and requests are taken.
    pub authorization: Authorization,
}

impl Access {
    /// For everyone who comes in this mode.
    #[must_use]
    pub fn without_policies(tls_mode: TlsMode) -> Self {
        Self { tls_mode, authorization: Authorization::default() }
    }
}

/// Whether plaintext from outside the mesh is accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    /// Plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Lets in; what no policy of this kind matches is refused.
    Allow,
    /// Refuses.
    Deny,
}

/// One policy; it matches when one of its rules does.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// For logs, metrics and operators; never for callers.
    pub name: ObjectName,
    /// What it does.
    pub action: Action,
    /// Only tells what it would do.
    pub dry_run: bool,
    /// Empty only with [`Action::Allow`].
    pub rules: Vec<AuthorizationRule>,
}

/// Matches when all groups do; without groups always.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationRule {
    /// Who calls, what is called, with which claims.
    pub groups: Vec<ConditionGroup>,
}

/// Matches when one of these sets holds; never empty.
pub type ConditionGroup = Vec<ConditionSet>;

/// Holds when all of these do; never empty.
pub type ConditionSet = Vec<Condition>;

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Holds when none of the values matches.
    pub negated: bool,
    /// What is looked at, and the values, of which there is at least one.
    pub kind: ConditionKind,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq)]
pub enum ConditionKind {
    /// The caller's proven identity.
    Identities(Vec<IdentityMatch>),
    /// The caller's address.
    Networks(Vec<Network>),
    /// The port of the app.
    Ports(Vec<u16>),
    /// The method.
    Methods(Vec<Method>),
    /// The canonical path.
    Paths(Vec<PathPattern>),
    /// The host without its port.
    Hosts(Vec<HostMatch>),
    /// A header.
    Header(HeaderName, Vec<TextMatch>),
    /// A claim of the verified token.
    Claim(Box<str>, Vec<TextMatch>),
}

impl ConditionKind {
    /// Whether it looks at a request, so that a connection alone does not tell.
    #[must_use]
    pub const fn of_requests(&self) -> bool {
        match self {
            Self::Identities(_) | Self::Networks(_) | Self::Ports(_) => false,
            Self::Methods(_) | Self::Paths(_) | Self::Hosts(_) | Self::Header(..) | Self::Claim(..) => true,
        }
    }
}

/// An identity, or those that begin alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IdentityMatch {
    /// Any proven identity.
    Any,
    /// This one.
    Exact(SpiffeId),
    /// Those that begin so; the whole trust domain is part of it.
    Prefix(Box<str>),
}

/// A text, or those that begin alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TextMatch {
    /// This one.
    Exact(Box<str>),
    /// Those that begin so; empty: any.
    Prefix(Box<str>),
}

/// A host name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostMatch {
    /// Any.
    Any,
    /// This one, lower-case.
    Exact(Box<str>),
    /// Those below: lower-case, with its leading dot.
    Below(Box<str>),
}

/// Addresses that have their first bits in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// Without bits beyond `bits`; an IPv4 address in IPv6 form is kept as IPv4.
    pub address: IpAddr,
    /// 0 to 32, or to 128.
    pub bits: u8,
}

/// A pattern of paths.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathPattern {
    /// Any path, and `*`.
    Any,
    /// By segment.
    Segments {
        /// From the first slash on; a trailing slash is an empty segment.
        segments: Box<[Segment]>,
        /// All paths below match too.
        below: bool,
    },
}

/// One segment of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Segment {
    /// Any that is not empty.
    One,
    /// This one, canonical.
    Literal(Box<str>),
}
