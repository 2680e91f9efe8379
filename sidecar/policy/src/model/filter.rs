//! What routes do to requests and responses on their way, as `convert` checked it.

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::Target;

/// The filters of a rule or a backend, each kind in its place. Empty by default, and small while it is: most rules
/// have none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    /// To the request's headers, in order.
    pub request_headers: Vec<HeaderModifier>,
    /// To the response's headers, in order.
    pub response_headers: Vec<HeaderModifier>,
    /// The answer is this redirect.
    pub redirect: Option<Box<Redirect>>,
    /// To host and path.
    pub rewrite: Option<Box<Rewrite>>,
    /// Copies, and who gets them.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin requests.
    pub cors: Option<Box<Cors>>,
}

/// Changes to headers: first `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderModifier {
    /// In place of all fields of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside them.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// All fields of the name.
    pub remove: Vec<HeaderName>,
}

/// What becomes of a path. The query stays.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathModifier {
    /// In place of the whole path.
    Full(Box<str>),
    /// In place of the prefix that the match has matched.
    Prefix(Box<str>),
}

/// A redirect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// `http` or `https`; `None`: that of the request.
    pub scheme: Option<Scheme>,
    /// `None`: that of the request.
    pub hostname: Option<Box<str>>,
    /// `None`: unchanged.
    pub path: Option<PathModifier>,
    /// `None`: that of `scheme` if given, else the Service's port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Scheme of a URL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

/// Changes of host and path before the request is sent on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rewrite {
    /// In place of Host.
    pub hostname: Option<HeaderValue>,
    /// To the path.
    pub path: Option<PathModifier>,
}

/// A copy whose answer nobody waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mirror {
    /// Who gets it.
    pub target: Target,
    /// Share of the requests in parts per million.
    pub ppm: u32,
}

/// Cross-origin resource sharing (WHATWG Fetch, section 3.3).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cors {
    /// Who may call.
    pub allow_origins: Vec<Origin>,
    /// With cookies and the like.
    pub allow_credentials: bool,
    /// With these methods.
    pub allow_methods: Allowed<Method>,
    /// With these headers.
    pub allow_headers: Allowed<HeaderName>,
    /// Headers of the response that a page may read.
    pub expose_headers: Allowed<HeaderName>,
    /// Seconds for which a preflight may be cached.
    pub max_age: u32,
}

/// Everything, or these.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Allowed<T> {
    /// `*`.
    All,
    /// These.
    Some(Vec<T>),
}

impl<T> Default for Allowed<T> {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

/// An origin that may call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// `*`: any.
    Any,
    /// This one, `scheme://host[:port]` in lower case.
    Exact(Box<str>),
    /// Any host below: `scheme://`, and `.host[:port]`.
    Below(Box<str>, Box<str>),
}
