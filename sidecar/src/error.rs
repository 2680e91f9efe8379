//! Why a request or connection failed: one closed set of reasons, from which status, gRPC code, response flag,
//! `Proxy-Status` type and blame follow. Responses are made in `http::reply`, counted in `telemetry`.

use std::fmt;

/// A reason word. The same in `Proxy-Status`, logs and metrics.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Reason {
    /// The caller broke HTTP's rules; `ProxyError::detail` says which.
    BadRequest,
    /// The caller's body ended early or broke framing.
    BadRequestBody,
    /// The caller took too long to send its request.
    ClientTimeout,
    /// The caller went away.
    ClientGone,
    /// Could not connect in time.
    ConnectTimeout,
    /// Connection refused.
    ConnectionRefused,
    /// Any other failure to connect.
    ConnectFailed,
    /// The endpoint closed or reset the connection before it answered.
    ConnectionTerminated,
    /// The endpoint broke HTTP's rules.
    ProtocolError,
    /// More connections than allowed.
    ConnectionLimit,
    /// More requests than allowed.
    RequestLimit,
    /// More requests than allowed wait for a connection.
    PendingLimit,
    /// The service could not be reached, and is left alone until a probe succeeds.
    CircuitOpen,
    /// We are stopping.
    Draining,
    /// Request head too large or too many fields.
    HeaderTooLarge,
    /// No service has this name.
    UnknownService,
    /// No route matches.
    NoRoute,
    /// The route's backend does not exist.
    InvalidBackend,
    /// The service has no endpoint that may take requests.
    NoEndpoints,
    /// Discovery has not answered yet.
    NotReady,
    /// The workload does not serve this port.
    UnknownPort,
    /// The request's own deadline.
    RequestTimeout,
    /// The deadline of one try.
    TryTimeout,
    /// Nothing moved for the idle time.
    IdleTimeout,
    /// TLS handshake failed.
    TlsHandshake,
    /// The peer proved another identity than discovery gives.
    TlsIdentityMismatch,
    /// The peer's certificate was refused; `ProxyError::detail` says why.
    TlsCertificate,
    /// Not TLS on the mesh port.
    TlsPlaintext,
    /// Plaintext refused by policy.
    PlaintextDenied,
    /// Refused by an AuthorizationPolicy, or by there being some of which none allows it.
    RbacDenied,
    /// Outside the mesh, and calls may not leave it.
    OutboundDenied,
    /// No token, and a RequestAuthentication requires one.
    TokenMissing,
    /// A token that is not valid.
    TokenInvalid,
    /// The upgrade or CONNECT was refused.
    UpgradeRefused,
    /// More requests than a RateLimitPolicy lets in.
    RateLimited,
    /// Delayed on purpose by a FaultInjection.
    FaultDelay,
    /// Failed on purpose by a FaultInjection.
    FaultAbort,
    /// The request loops through this sidecar.
    Loop,
    /// A bug of ours.
    Internal,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The peer that called us.
    Downstream,
    /// Weft or its configuration.
    Internal,
    /// The peer that we called.
    Upstream,
}

/// A failure: the reason, and for people what exactly happened.
#[derive(Clone, Debug)]
pub struct ProxyError {
    /// Which reason.
    pub reason: Reason,
    /// Value and cause, without secrets. Goes into `Proxy-Status` details and the log.
    pub detail: String,
    /// No byte of the request can have reached an application: always safe to send elsewhere.
    pub unsent: bool,
    /// Of a dial for which several requests waited: this is not the one that made it.
    pub shared: bool,
    /// The peer says that it has done nothing with the request, of which something was sent: safe to send again.
    pub refused: bool,
}

/// Everything that follows from a reason.
struct Row {
    word: &'static str,
    flag: &'static str,
    status: u16,
    grpc: u8,
    proxy_status: &'static str,
    blame: Blame,
}

const fn row(
    word: &'static str,
    flag: &'static str,
    status: u16,
    grpc: u8,
    proxy_status: &'static str,
    blame: Blame,
) -> Row {
    Row { word, flag, status, grpc, proxy_status, blame }
}

impl Reason {
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; 39] = [
        Self::BadRequest,
        Self::BadRequestBody,
        Self::ClientTimeout,
        Self::ClientGone,
        Self::ConnectTimeout,
        Self::ConnectionRefused,
        Self::ConnectFailed,
        Self::ConnectionTerminated,
        Self::ProtocolError,
        Self::ConnectionLimit,
        Self::RequestLimit,
        Self::PendingLimit,
        Self::CircuitOpen,
        Self::Draining,
        Self::HeaderTooLarge,
        Self::UnknownService,
        Self::NoRoute,
        Self::InvalidBackend,
        Self::NoEndpoints,
        Self::NotReady,
        Self::UnknownPort,
        Self::RequestTimeout,
        Self::TryTimeout,
        Self::IdleTimeout,
        Self::TlsHandshake,
        Self::TlsIdentityMismatch,
        Self::TlsCertificate,
        Self::TlsPlaintext,
        Self::PlaintextDenied,
        Self::RbacDenied,
        Self::OutboundDenied,
        Self::TokenMissing,
        Self::TokenInvalid,
        Self::UpgradeRefused,
        Self::RateLimited,
        Self::FaultDelay,
        Self::FaultAbort,
        Self::Loop,
        Self::Internal,
    ];

    /// Columns: word, Envoy's response flag, HTTP status, gRPC code, RFC 9209 error type, blame.
    const fn row(self) -> Row {
        use Blame::{Downstream, Internal, Upstream};
        match self {
            Self::BadRequest => row("bad_request", "DPE", 400, 13, "http_request_error", Downstream),
            Self::BadRequestBody => row("bad_request_body", "DPE", 400, 13, "http_request_error", Downstream),
            Self::ClientTimeout => row("client_timeout", "DT", 408, 4, "http_request_error", Downstream),
            Self::ClientGone => row("client_gone", "DC", 499, 1, "http_request_error", Downstream),
            Self::ConnectTimeout => row("connect_timeout", "UF", 504, 14, "connection_timeout", Upstream),
            Self::ConnectionRefused => row("connection_refused", "UF", 503, 14, "connection_refused", Upstream),
            Self::ConnectFailed => row("connect_failed", "UF", 503, 14, "destination_ip_unroutable", Upstream),
            Self::ConnectionTerminated => {
                row("connection_terminated", "UC", 502, 14, "connection_terminated", Upstream)
            }
            Self::ProtocolError => row("protocol_error", "UPE", 502, 13, "http_protocol_error", Upstream),
            Self::ConnectionLimit => row("connection_limit", "UO", 503, 14, "connection_limit_reached", Internal),
            Self::RequestLimit => row("request_limit", "UO", 503, 14, "connection_limit_reached", Internal),
            Self::PendingLimit => row("pending_limit", "UO", 503, 14, "connection_limit_reached", Internal),
            Self::CircuitOpen => row("circuit_open", "UO", 503, 14, "destination_unavailable", Upstream),
            Self::Draining => row("draining", "DR", 503, 14, "destination_unavailable", Internal),
            Self::HeaderTooLarge => row("header_too_large", "DPE", 431, 13, "http_request_error", Downstream),
            Self::UnknownService => row("unknown_service", "NR", 404, 12, "destination_not_found", Internal),
            Self::NoRoute => row("no_route", "NR", 404, 12, "destination_not_found", Internal),
            Self::InvalidBackend => row("invalid_backend", "NC", 500, 14, "proxy_configuration_error", Internal),
            Self::NoEndpoints => row("no_endpoints", "UH", 503, 14, "destination_unavailable", Upstream),
            Self::NotReady => row("not_ready", "NC", 503, 14, "destination_unavailable", Internal),
            Self::UnknownPort => row("unknown_port", "NR", 404, 12, "destination_not_found", Internal),
            Self::RequestTimeout => row("request_timeout", "UT", 504, 4, "http_response_timeout", Upstream),
            Self::TryTimeout => row("try_timeout", "UT", 504, 4, "http_response_timeout", Upstream),
            Self::IdleTimeout => row("idle_timeout", "SI", 504, 4, "http_response_timeout", Upstream),
            Self::TlsHandshake => row("tls_handshake", "UF", 503, 14, "tls_protocol_error", Upstream),
            Self::TlsIdentityMismatch => row("tls_identity_mismatch", "UF", 503, 14, "tls_certificate_error", Upstream),
            Self::TlsCertificate => row("tls_certificate", "UF", 503, 14, "tls_certificate_error", Upstream),
            Self::TlsPlaintext => row("tls_plaintext", "DPE", 400, 14, "tls_protocol_error", Downstream),
            Self::PlaintextDenied => row("plaintext_denied", "UAEX", 403, 7, "http_request_denied", Downstream),
            Self::RbacDenied => row("rbac_denied", "UAEX", 403, 7, "http_request_denied", Downstream),
            Self::OutboundDenied => row("outbound_denied", "UH", 502, 14, "destination_ip_prohibited", Internal),
            Self::TokenMissing => row("token_missing", "UAEX", 401, 16, "http_request_denied", Downstream),
            Self::TokenInvalid => row("token_invalid", "UAEX", 401, 16, "http_request_denied", Downstream),
            Self::UpgradeRefused => row("upgrade_refused", "UPE", 502, 14, "http_upgrade_failed", Upstream),
            Self::RateLimited => row("rate_limited", "RL", 429, 8, "http_request_denied", Downstream),
            Self::FaultDelay => row("fault_delay", "DI", 504, 4, "proxy_internal_response", Internal),
            Self::FaultAbort => row("fault_abort", "FI", 503, 14, "proxy_internal_response", Internal),
            Self::Loop => row("loop", "NR", 508, 13, "proxy_loop_detected", Internal),
            Self::Internal => row("internal", "NC", 500, 13, "proxy_internal_error", Internal),
        }
    }

    /// The reason word, lower-case with underscores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().word
    }

    /// Envoy's response flag.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        self.row().flag
    }

    /// HTTP status of the response that we make.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.row().status
    }

    /// gRPC status code of the response that we make.
    #[must_use]
    pub const fn grpc_status(self) -> u8 {
        self.row().grpc
    }

    /// RFC 9209 error type.
    #[must_use]
    pub const fn proxy_status(self) -> &'static str {
        self.row().proxy_status
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(self) -> Blame {
        self.row().blame
    }
}

impl ProxyError {
    /// A failure after which the request may have reached the application.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), unsent: false, refused: false, shared: false }
    }

    /// A failure before anything was sent.
    pub fn unsent(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), unsent: true, refused: false, shared: false }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.detail)
    }
}

impl std::error::Error for ProxyError {}
