//! Who may use the API: with `--dev` the local user, without a token, from this machine and not from a web page;
//! otherwise the holder of a token, as far as its role goes. Everything that is refused is counted and told to the
//! audit log. What a role may do is in [`rules`], the tokens are in [`tokens`].

mod failures;
pub mod handlers;
mod joins;
pub mod review;
pub mod rules;
pub mod tokens;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use weft_metrics::{Collector, Labels, float};

use self::{
    failures::Failures,
    rules::{Asked, Forbidden, Role, is_public},
    tokens::{Refused, Token, Tokens},
};
use super::status::ApiError;

/// Who makes a request: an extension of it, set by [`check`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Name in the history.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The only namespace in which it may; none for all.
    pub namespace: Option<String>,
}

impl Caller {
    /// The user that runs this process: only `--dev`, on loopback, is served without a token.
    #[must_use]
    pub fn local() -> Self {
        static NAME: OnceLock<String> = OnceLock::new();
        let name = NAME.get_or_init(|| {
            let uid = rustix::process::getuid().as_raw();
            let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            // A user of a directory service is not in the file: the environment may know the name.
            let variable = std::env::var("USER").ok().filter(|user| !user.is_empty());
            match user_name(&users, uid).map(str::to_owned).or(variable) {
                Some(user) => format!("{user} (uid {uid})"),
                None => format!("uid {uid}"),
            }
        });
        Self { name: name.clone(), role: Role::Admin, namespace: None }
    }

    /// Whether it may look into this namespace.
    #[must_use]
    pub fn sees(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|own| own == namespace)
    }

    fn of(token: &Token) -> Self {
        Self { name: token.name.clone(), role: token.role, namespace: token.namespace.clone() }
    }
}

/// The name of a user in the text of a passwd file.
fn user_name(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
        (number.parse() == Ok(uid) && !name.is_empty()).then_some(name)
    })
}

/// Where a request comes from: an extension of it, set by what accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// How requests are let in. Clones share it.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    /// None: the local user alone, without tokens.
    tokens: Option<Tokens>,
    failures: Failures,
    denied: [AtomicU64; Denied::ALL.len()],
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Denied {
    Expired,
    Host,
    Invalid,
    Missing,
    Namespace,
    RateLimited,
    Role,
}

impl Denied {
    const ALL: [Self; 7] =
        [Self::Expired, Self::Host, Self::Invalid, Self::Missing, Self::Namespace, Self::RateLimited, Self::Role];

    fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Host => "host",
            Self::Invalid => "invalid",
            Self::Missing => "missing",
            Self::Namespace => "namespace",
            Self::RateLimited => "rate_limited",
            Self::Role => "role",
        }
    }
}

impl Access {
    /// The local user, without tokens; for `--dev`, on loopback.
    #[must_use]
    pub fn dev() -> Self {
        Self::of(None)
    }

    /// Holders of these tokens.
    #[must_use]
    pub fn tokens(tokens: Tokens) -> Self {
        Self::of(Some(tokens))
    }

    fn of(tokens: Option<Tokens>) -> Self {
        Self(Arc::new(Inner { tokens, failures: Failures::default(), denied: Default::default() }))
    }

    /// Says what was refused and how many tokens there are.
    pub fn collect(&self, out: &mut Collector) {
        let (none, family) =
            (Labels::new(&[]), ("weft_api_denied_total", "Requests to the operator API that were refused"));
        for reason in Denied::ALL {
            let count = self.0.denied[reason as usize].load(Relaxed);
            out.counter_with(family, &none, &[("reason", reason.label())], count);
        }
        if let Some(tokens) = &self.0.tokens {
            let count = float(u64::try_from(tokens.list().len()).unwrap_or(u64::MAX));
            out.gauge("weft_api_tokens", "Tokens of the operator API that are kept", &none, count);
        }
    }

    /// Counts a refusal and tells the audit log. What the caller sent is quoted, so that it cannot forge a line.
    fn deny(&self, reason: Denied, asking: &Asking, who: Option<&Caller>) {
        self.0.denied[reason as usize].fetch_add(1, Relaxed);
        let (user, role) = who.map_or(("", String::new()), |caller| (&caller.name, caller.role.to_string()));
        let reason = reason.label();
        let Asking { asked, peer } = asking;
        tracing::warn!(target: "audit", user, role, %peer, reason, asked = %asked, "request to the operator API refused");
    }

    /// Refuses a rollback beyond the caller's namespace; only its body says how far it goes.
    pub fn refuse_rollback(&self, caller: &Caller, peer: Option<Peer>, namespace: Option<String>) -> ApiError {
        let (verb, resource) = ("roll back".to_owned(), "*".to_owned());
        let asked = Asked::Resource { verb, resource, namespace, name: None };
        let asking = Asking { asked, peer: address(peer.as_ref()) };
        self.deny(Denied::Namespace, &asking, Some(caller));
        ApiError::forbidden(caller, &asking.asked)
    }

    /// Refuses to show query strings; the query of the request says that they are wanted.
    pub fn refuse_query(&self, caller: &Caller, peer: Option<Peer>) -> ApiError {
        let path = format!("{}?query=true", rules::TAP);
        let asked = Asked::Path { verb: "get".to_owned(), path, namespaces: Vec::new() };
        let asking = Asking { asked, peer: address(peer.as_ref()) };
        self.deny(Denied::Role, &asking, Some(caller));
        ApiError::forbidden(caller, &asking.asked)
    }

    /// The token of the request.
    fn authenticate(&self, tokens: &Tokens, headers: &HeaderMap, asking: &Asking) -> Result<Token, Denied> {
        let found = match bearer(headers) {
            None => Err(Denied::Missing),
            Some(text) => tokens.verify(text, Timestamp::now()).map_err(|refused| match refused {
                Refused::Expired => Denied::Expired,
                Refused::Invalid => Denied::Invalid,
            }),
        };
        found.map_err(|reason| {
            if self.0.failures.take(asking.peer, tokio::time::Instant::now()) {
                self.deny(reason, asking, None);
                return reason;
            }
            // Counted only: a line for each would be the flood that this is against.
            self.0.denied[Denied::RateLimited as usize].fetch_add(1, Relaxed);
            Denied::RateLimited
        })
    }
}

/// What is wanted, from where.
struct Asking {
    asked: Asked,
    peer: IpAddr,
}

/// Without a connection, as in tests, it is nowhere.
fn address(peer: Option<&Peer>) -> IpAddr {
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(peer)| peer.ip())
}

/// The middleware of all paths.
pub async fn check(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let peer = address(request.extensions().get());
    let asking = Asking { asked: Asked::of(request.method(), request.uri()), peer };
    let Some(tokens) = &access.0.tokens else {
        if let Some(refused) = from_elsewhere(request.headers()) {
            access.deny(Denied::Host, &asking, None);
            return refused;
        }
        request.extensions_mut().insert(Caller::local());
        return next.run(request).await;
    };
    if is_public(request.uri().path()) {
        return next.run(request).await;
    }
    let token = match access.authenticate(tokens, request.headers(), &asking) {
        Ok(token) => token,
        Err(reason) => return unauthorized(reason),
    };
    if tokens.used(&token.id, Timestamp::now()) {
        let tokens = tokens.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = tokens.save() {
                tracing::warn!(error = format!("{error:#}"), "the day of a token's use is not kept");
            }
        });
    }
    let caller = Caller::of(&token);
    if let Err(forbidden) = asking.asked.allowed(&caller) {
        let reason = match forbidden {
            Forbidden::Namespace => Denied::Namespace,
            Forbidden::Role => Denied::Role,
        };
        access.deny(reason, &asking, Some(&caller));
        return ApiError::forbidden(&caller, &asking.asked).into_response();
    }
    request.extensions_mut().insert(caller);
    // No handler needs the secret.
    request.headers_mut().remove(header::AUTHORIZATION);
    let response = next.run(request).await;
    if !asking.asked.is_watch() {
        return response;
    }
    // It lasts for an hour or more, but not longer than the token.
    let ended = Box::pin(tokens.clone().ended(token.id));
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(ended)))
}

/// The token of the only Authorization header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(reason: Denied) -> Response {
    let (message, challenge) = match reason {
        Denied::RateLimited => return ApiError::too_many("requests without a valid token").into_response(),
        Denied::Missing => ("a bearer token is needed: Authorization: Bearer TOKEN", "Bearer realm=\"weft\""),
        Denied::Expired => ("the token has expired", "Bearer realm=\"weft\", error=\"invalid_token\""),
        _ => ("the token is not valid here", "Bearer realm=\"weft\", error=\"invalid_token\""),
    };
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "Unauthorized", message).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// A page in a browser on this machine can reach loopback: its Host or Origin gives it away.
fn from_elsewhere(headers: &HeaderMap) -> Option<Response> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if is_local(host) && !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let text = format!("host {host:?} is not served here: use 127.0.0.1 or localhost, and no browser\n");
    Some((StatusCode::FORBIDDEN, text).into_response())
}

pub(super) fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || host.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || name == "127.0.0.1"
}

#[cfg(test)]
mod tests;
