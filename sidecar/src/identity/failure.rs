//! Why a certificate was not obtained: a word for metrics, and what to do.

use std::{error::Error, fmt, io};

use rustls::AlertDescription;

use super::channel::WrongPeer;

/// One failed try.
#[derive(Debug)]
pub struct Failure {
    /// The kind.
    pub reason: FailureReason,
    /// What happened.
    pub error: anyhow::Error,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailureReason {
    /// There is neither a usable certificate nor a token.
    NoToken,
    /// No connection.
    Unreachable,
    /// Whoever answers does not prove to be the control plane of this mesh.
    Untrusted,
    /// The control plane does not accept our certificate.
    Rejected,
    /// Our certificate is revoked.
    Revoked,
    /// The control plane refuses to sign.
    Refused,
    /// The control plane signs no more for now.
    Limited,
    /// What it signed is not what was asked for.
    Answer,
    /// What it signed has ended by this machine's clock.
    Clock,
    /// No answer in time.
    Timeout,
    /// Something else.
    Other,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub const fn new(reason: FailureReason, error: anyhow::Error) -> Self {
        Self { reason, error }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(FailureReason::Other, error)
    }
}

/// What happened, and what to do about it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)?;
        match self.reason.advice() {
            "" => Ok(()),
            advice => write!(f, "; {advice}"),
        }
    }
}

impl Error for Failure {}

impl FailureReason {
    /// Stable word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Unreachable => "unreachable",
            Self::Untrusted => "untrusted",
            Self::Rejected => "rejected",
            Self::Revoked => "revoked",
            Self::Refused => "refused",
            Self::Limited => "limited",
            Self::Answer => "answer",
            Self::Clock => "clock",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }

    /// What to do, for the end of a sentence.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::NoToken => "give --token FILE, or start the control plane with --dev on this machine",
            Self::Unreachable | Self::Timeout => "is it running (`weft control-plane`), and is --xds its address?",
            Self::Untrusted => "is --xds the address of this mesh's control plane, and the token one of this mesh?",
            Self::Rejected | Self::Revoked => "to enrol anew, give a new token with --token FILE",
            Self::Refused => "a token is used once and lives for minutes: make a new one (`weft token create`)",
            Self::Clock => "is this machine's clock right?",
            Self::Limited | Self::Answer | Self::Other => "",
        }
    }

    /// Whether another proof than the certificate may help.
    #[must_use]
    pub const fn asks_for_token(self) -> bool {
        matches!(self, Self::Untrusted | Self::Rejected | Self::Revoked | Self::Refused)
    }

    /// The kind of a failed connection or call, from what caused it.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        let mut unreachable = false;
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                unreachable = true;
                // The source of such an error is not what is in it but the source of that.
                if let Some(inner) = io.get_ref() {
                    next = Some(inner);
                    continue;
                }
            }
            if error.is::<WrongPeer>() || error.is::<weft_svid::SvidReason>() {
                return Self::Untrusted;
            }
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Self::of_tls(tls);
            }
            next = error.source();
        }
        if unreachable { Self::Unreachable } else { Self::Other }
    }

    /// The kind of a call that was answered or broken off.
    #[must_use]
    pub fn of_status(status: &tonic::Status) -> Self {
        use tonic::Code;
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Self::Refused,
            Code::ResourceExhausted => Self::Limited,
            Code::DeadlineExceeded => Self::Timeout,
            _ => status.source().map_or(Self::Other, Self::of),
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(AlertDescription::CertificateRevoked) => Self::Revoked,
            rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::CertificateRequired,
            ) => Self::Rejected,
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Self::Untrusted,
            // A port on which something else listens.
            _ => Self::Unreachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(error: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
        io::Error::other(io::Error::other(error))
    }

    #[test]
    fn a_failure_is_known_by_its_cause_however_deep() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(FailureReason::of(&refused), FailureReason::Unreachable);
        let alert = |alert| wrapped(rustls::Error::AlertReceived(alert));
        assert_eq!(FailureReason::of(&alert(AlertDescription::CertificateRevoked)), FailureReason::Revoked);
        assert_eq!(FailureReason::of(&alert(AlertDescription::UnknownCA)), FailureReason::Rejected);
        let invalid = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert_eq!(FailureReason::of(&wrapped(invalid)), FailureReason::Untrusted);
        assert_eq!(FailureReason::of(&std::fmt::Error), FailureReason::Other);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let failure = Failure::new(FailureReason::Refused, anyhow::anyhow!("the token is used"));
        assert!(failure.to_string().starts_with("the token is used; a token is used once"), "{failure}");
    }
}
