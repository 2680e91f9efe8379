//! Filters of routes from the wire.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use weft_proto::v1;

use super::{Invalid, at, header_name, invalid, name, policy::ppm, port, route_path};
use crate::{
    canonical::Authority,
    model::{Allowed, Cors, Filters, HeaderModifier, Mirror, Origin, PathModifier, Redirect, Rewrite, Scheme, Target},
};

/// Most filters of one rule or backend.
const MAX_FILTERS: usize = 64;

/// Where filters stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// At a rule.
    Rule,
    /// At a backend of a rule: after those of the rule, and for requests to this backend only.
    Backend,
}

/// Converts filters.
///
/// # Errors
/// The first field that is wrong.
pub fn filters(wire: Vec<v1::Filter>, place: Place) -> Result<Filters, Invalid> {
    use v1::filter::Kind;
    if wire.len() > MAX_FILTERS {
        return invalid("filters", wire.len(), format!("must be at most {MAX_FILTERS}"));
    }
    let mut filters = Filters::default();
    for (index, filter) in wire.into_iter().enumerate() {
        let path = format!("filters[{index}]");
        let twice = || invalid(path.clone(), "", "is given twice: one of its kind is allowed");
        match filter.kind {
            None => return invalid(path, "", "is no filter that this version knows"),
            Some(Kind::RequestHeaders(change)) => {
                filters.request_headers.push(at(&format!("{path}.request_headers"), headers(change))?);
            }
            Some(Kind::ResponseHeaders(change)) => {
                filters.response_headers.push(at(&format!("{path}.response_headers"), headers(change))?);
            }
            Some(Kind::Redirect(_) | Kind::Cors(_)) if place == Place::Backend => {
                return invalid(path, "", "belongs to a rule: it answers before a backend is chosen");
            }
            Some(Kind::Redirect(_)) if filters.redirect.is_some() => return twice(),
            Some(Kind::Rewrite(_)) if filters.rewrite.is_some() => return twice(),
            Some(Kind::Cors(_)) if filters.cors.is_some() => return twice(),
            Some(Kind::Redirect(wire)) => {
                filters.redirect = Some(at(&format!("{path}.redirect"), redirect(wire))?.into())
            }
            Some(Kind::Rewrite(wire)) => filters.rewrite = Some(at(&format!("{path}.rewrite"), rewrite(wire))?.into()),
            Some(Kind::Cors(wire)) => filters.cors = Some(at(&format!("{path}.cors"), cors(wire))?.into()),
            Some(Kind::Mirror(wire)) => filters.mirrors.push(at(&format!("{path}.mirror"), mirror(wire))?),
        }
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        return invalid("filters", "", "redirect and rewrite exclude each other");
    }
    Ok(filters)
}

/// Fields that belong to one connection or to framing (RFC 9110 section 7.6.1), and Host, which a rewrite sets.
const NOT_TO_BE_CHANGED: [&str; 12] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // The mesh's own.
    "x-weft-caller-version",
    "x-weft-rule",
    "x-weft-unsent",
];

/// A lower-case field that no route may write.
#[must_use]
pub fn is_fixed_header(name: &str) -> bool {
    NOT_TO_BE_CHANGED.contains(&name)
}

/// A field that a route may write.
pub(super) fn changeable(field: &str, text: String) -> Result<HeaderName, Invalid> {
    if is_fixed_header(&text) {
        return invalid(field, text, "belongs to the connection or to framing: it cannot be changed");
    }
    header_name(field, text)
}

fn headers(wire: v1::HeaderModifier) -> Result<HeaderModifier, Invalid> {
    let fields = |list: &str, wire: Vec<v1::Header>| {
        let field = |(index, header): (usize, v1::Header)| {
            let path = format!("{list}[{index}]");
            let name = changeable(&format!("{path}.name"), header.name)?;
            let value = HeaderValue::from_str(&header.value)
                .or_else(|_| invalid(format!("{path}.value"), header.value, "has bytes that a header may not have"))?;
            Ok((name, value))
        };
        wire.into_iter().enumerate().map(field).collect::<Result<Vec<_>, _>>()
    };
    let remove = wire.remove.into_iter().enumerate();
    Ok(HeaderModifier {
        set: fields("set", wire.set)?,
        add: fields("add", wire.add)?,
        remove: remove.map(|(i, name)| changeable(&format!("remove[{i}]"), name)).collect::<Result<_, _>>()?,
    })
}

fn path_modifier(wire: Option<v1::PathModifier>) -> Result<Option<PathModifier>, Invalid> {
    use v1::path_modifier::Kind;
    Ok(match wire.and_then(|path| path.kind) {
        None => None,
        Some(Kind::Full(path)) => Some(PathModifier::Full(replacement("path.full", path)?)),
        Some(Kind::Prefix(path)) if path.is_empty() => Some(PathModifier::Prefix("/".into())),
        Some(Kind::Prefix(path)) => Some(PathModifier::Prefix(replacement("path.prefix", path)?)),
    })
}

/// A path that can stand in a request line: it was written by a person, and is not encoded again.
fn replacement(field: &str, path: String) -> Result<Box<str>, Invalid> {
    if path.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'?' | b'#' | b'\\')) {
        return invalid(field, path, "must be a path of printable ASCII without query and fragment");
    }
    route_path(field, path)
}

fn hostname(text: String) -> Result<Box<str>, Invalid> {
    match Authority::parse(text.as_bytes()) {
        Ok(authority) if authority.port.is_none() && *authority.host == *text => Ok(text.into()),
        _ => invalid("hostname", text, "must be a lower-case host name without a port"),
    }
}

fn redirect(wire: v1::Redirect) -> Result<Redirect, Invalid> {
    let scheme = match wire.scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => return invalid("scheme", wire.scheme, "must be http or https"),
    };
    let status = match wire.status {
        301 => StatusCode::MOVED_PERMANENTLY,
        302 => StatusCode::FOUND,
        303 => StatusCode::SEE_OTHER,
        307 => StatusCode::TEMPORARY_REDIRECT,
        308 => StatusCode::PERMANENT_REDIRECT,
        other => return invalid("status", other, "must be 301, 302, 303, 307 or 308"),
    };
    Ok(Redirect {
        scheme,
        hostname: (!wire.hostname.is_empty()).then(|| hostname(wire.hostname)).transpose()?,
        path: path_modifier(wire.path)?,
        port: (wire.port != 0).then(|| port("port", wire.port)).transpose()?,
        status,
    })
}

fn rewrite(wire: v1::Rewrite) -> Result<Rewrite, Invalid> {
    let hostname = (!wire.hostname.is_empty()).then(|| hostname(wire.hostname)).transpose()?;
    let hostname = hostname.map(|host| {
        HeaderValue::from_str(&host).or_else(|_| invalid("hostname", host, "has bytes that a header may not have"))
    });
    Ok(Rewrite { hostname: hostname.transpose()?, path: path_modifier(wire.path)? })
}

fn mirror(wire: v1::Mirror) -> Result<Mirror, Invalid> {
    let target = Target { service: name("service", &wire.service)?, port: port("port", wire.port)? };
    Ok(Mirror { target, ppm: ppm("ppm", wire.ppm)? })
}

fn cors(wire: v1::Cors) -> Result<Cors, Invalid> {
    let origins = wire.allow_origins.into_iter().enumerate();
    let method = |field: &str, text: String| {
        Method::from_bytes(text.as_bytes()).or_else(|_| invalid(field, text, "must be an HTTP method or *"))
    };
    Ok(Cors {
        allow_origins: origins
            .map(|(index, text)| origin(&format!("allow_origins[{index}]"), text))
            .collect::<Result<_, _>>()?,
        allow_credentials: wire.allow_credentials,
        allow_methods: allowed("allow_methods", wire.allow_methods, method)?,
        allow_headers: allowed("allow_headers", wire.allow_headers, header_name)?,
        expose_headers: allowed("expose_headers", wire.expose_headers, header_name)?,
        max_age: if wire.max_age == 0 { 5 } else { wire.max_age },
    })
}

fn allowed<T>(
    field: &str,
    wire: Vec<String>,
    convert: impl Fn(&str, String) -> Result<T, Invalid>,
) -> Result<Allowed<T>, Invalid> {
    if wire.iter().any(|item| item == "*") {
        return Ok(Allowed::All);
    }
    let items = wire.into_iter().enumerate().map(|(index, item)| convert(&format!("{field}[{index}]"), item));
    Ok(Allowed::Some(items.collect::<Result<_, _>>()?))
}

fn origin(field: &str, text: String) -> Result<Origin, Invalid> {
    if text == "*" {
        return Ok(Origin::Any);
    }
    let Some((scheme, host)) = text.split_once("://") else {
        return invalid(field, text, "must be * or scheme://host[:port]");
    };
    let bare = host.strip_prefix("*.").unwrap_or(host);
    if scheme.is_empty()
        || !scheme.bytes().all(|byte| byte.is_ascii_lowercase())
        || Authority::parse(bare.as_bytes()).is_err()
    {
        return invalid(field, text, "must be * or scheme://host[:port]");
    }
    let host = host.to_ascii_lowercase();
    Ok(match host.strip_prefix('*') {
        Some(below) => Origin::Below(format!("{scheme}://").into(), below.into()),
        None => Origin::Exact(format!("{scheme}://{host}").into()),
    })
}
