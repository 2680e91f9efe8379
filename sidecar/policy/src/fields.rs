//! Which fields a head has, of those that every message is asked for. One pass over the names takes the place of a look-up
//! in the map for each of them: most messages have almost none.

use std::ops::BitOr;

use http::{HeaderMap, HeaderName, header};

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fields(u16);

impl Fields {
    /// `Connection`.
    pub const CONNECTION: Self = Self(1);
    /// `Upgrade`.
    pub const UPGRADE: Self = Self(1 << 1);
    /// `TE`.
    pub const TE: Self = Self(1 << 2);
    /// `Transfer-Encoding`.
    pub const TRANSFER_ENCODING: Self = Self(1 << 3);
    /// `Content-Length`.
    pub const CONTENT_LENGTH: Self = Self(1 << 4);
    /// `Expect`.
    pub const EXPECT: Self = Self(1 << 5);
    /// `Host`.
    pub const HOST: Self = Self(1 << 6);
    /// `Cookie`.
    pub const COOKIE: Self = Self(1 << 7);
    /// `Proxy-Authenticate`, `Proxy-Authorization`, `Proxy-Connection` or `Keep-Alive`.
    pub const OTHER_HOP: Self = Self(1 << 8);
    /// What begins with `x-weft-`.
    pub const OWN: Self = Self(1 << 9);
    /// `traceparent` or `tracestate`.
    pub const W3C: Self = Self(1 << 10);
    /// `b3` or what begins with `x-b3-`.
    pub const B3: Self = Self(1 << 11);

    /// Those of this head.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |found, name| found | Self::one(name))
    }

    /// There is at least one of these.
    #[must_use]
    pub const fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    fn one(name: &HeaderName) -> Self {
        match *name {
            header::CONNECTION => Self::CONNECTION,
            header::UPGRADE => Self::UPGRADE,
            header::TE => Self::TE,
            header::TRANSFER_ENCODING => Self::TRANSFER_ENCODING,
            header::CONTENT_LENGTH => Self::CONTENT_LENGTH,
            header::EXPECT => Self::EXPECT,
            header::HOST => Self::HOST,
            header::COOKIE => Self::COOKIE,
            header::PROXY_AUTHENTICATE | header::PROXY_AUTHORIZATION => Self::OTHER_HOP,
            _ => Self::by_text(name.as_str()),
        }
    }

    fn by_text(name: &str) -> Self {
        match name {
            "keep-alive" | "proxy-connection" => Self::OTHER_HOP,
            "traceparent" | "tracestate" => Self::W3C,
            "b3" => Self::B3,
            _ if name.starts_with("x-weft-") => Self::OWN,
            _ if name.starts_with("x-b3-") => Self::B3,
            _ => Self::default(),
        }
    }
}

impl BitOr for Fields {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn each_field_is_found_among_others_and_nothing_else_is() {
        let names = [
            ("connection", Fields::CONNECTION),
            ("upgrade", Fields::UPGRADE),
            ("te", Fields::TE),
            ("transfer-encoding", Fields::TRANSFER_ENCODING),
            ("content-length", Fields::CONTENT_LENGTH),
            ("expect", Fields::EXPECT),
            ("host", Fields::HOST),
            ("cookie", Fields::COOKIE),
            ("keep-alive", Fields::OTHER_HOP),
            ("proxy-connection", Fields::OTHER_HOP),
            ("proxy-authenticate", Fields::OTHER_HOP),
            ("proxy-authorization", Fields::OTHER_HOP),
            ("x-weft-rule", Fields::OWN),
            ("traceparent", Fields::W3C),
            ("tracestate", Fields::W3C),
            ("b3", Fields::B3),
            ("x-b3-traceid", Fields::B3),
            ("accept", Fields::default()),
            ("x-weft", Fields::default()),
        ];
        for (name, expected) in names {
            let mut headers = HeaderMap::new();
            for other in ["user-agent", "x-request-id"] {
                headers.insert(other, HeaderValue::from_static("a"));
            }
            headers.insert(name, HeaderValue::from_static("a"));
            assert_eq!(Fields::of(&headers), expected, "{name}");
        }
        assert!((Fields::HOST | Fields::TE).has(Fields::TE | Fields::EXPECT));
        assert!(!Fields::HOST.has(Fields::TE | Fields::EXPECT));
    }
}
