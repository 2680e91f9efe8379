//! Why no certificate is issued: a stable reason for metrics and audit, a text for whoever asked, and the gRPC status.

use std::time::Duration;

use tonic::{Code, Status};

/// Metadata of a status: milliseconds to wait before the next try, as gRPC's retry design (A6) has it.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a certificate is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The certificate that was presented has ended meanwhile.
    CertificateExpired,
    /// The signing request is malformed or asks for what is not issued.
    Csr,
    /// The time of the token is over.
    Expired,
    /// There is no such token, or its secret is wrong.
    Invalid,
    /// Neither a token nor a certificate was presented.
    Missing,
    /// The token was used, with another key.
    OtherKey,
    /// Too many requests.
    RateLimited,
    /// Kubernetes does not vouch for the token, or cannot be asked.
    Review,
    /// The token was revoked, or the certificate is not trusted any more.
    Revoked,
    /// The issue could not be recorded, so it did not happen.
    Store,
    /// The token was used with this key, but too long ago.
    Used,
    /// What was presented is for another identity.
    WrongIdentity,
}

impl Reason {
    /// Stable word for logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::CertificateExpired => "certificate_expired",
            Self::Csr => "csr",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
            Self::Missing => "missing",
            Self::OtherKey => "other_key",
            Self::RateLimited => "rate_limited",
            Self::Review => "review",
            Self::Revoked => "revoked",
            Self::Store => "store",
            Self::Used => "used",
            Self::WrongIdentity => "wrong_identity",
        }
    }

    /// Whether it may be a guess or a theft, which are slowed down.
    #[must_use]
    pub const fn is_suspicious(self) -> bool {
        !matches!(self, Self::RateLimited | Self::Store)
    }

    const fn code(self) -> Code {
        match self {
            Self::Csr => Code::InvalidArgument,
            Self::OtherKey | Self::WrongIdentity => Code::PermissionDenied,
            Self::RateLimited => Code::ResourceExhausted,
            Self::Store => Code::Unavailable,
            _ => Code::Unauthenticated,
        }
    }
}

/// A refusal.
#[derive(Debug)]
pub struct Refusal {
    /// For metrics and audit.
    pub reason: Reason,
    /// For whoever asked: what is wrong and what to do.
    pub message: String,
    /// When to try again; none when that leads nowhere.
    pub retry: Option<Duration>,
}

impl Refusal {
    /// A refusal for good.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry: None }
    }

    /// Too many requests.
    #[must_use]
    pub fn rate_limited(of: &str, retry: Duration) -> Self {
        let message = format!("too many requests {of}: try again in {} ms", retry.as_millis());
        Self { reason: Reason::RateLimited, message, retry: Some(retry) }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Self::new(refusal.reason.code(), refusal.message);
        if let Some(retry) = refusal.retry {
            let millis = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
            status.metadata_mut().insert(PUSHBACK, millis.into());
        }
        status
    }
}
