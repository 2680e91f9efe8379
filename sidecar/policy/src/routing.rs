//! Which rule a request follows (Gateway API precedence), and which backend of the rule.

use std::{cmp::Reverse, sync::Arc};

use http::{HeaderMap, HeaderName, Method};

use crate::model::{KeyMatch, PathMatch, RouteMatch, RouteRule, Routing, ValueMatch, WeightedBackend};

/// What of a request matters for routing.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path without the query, as sent.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
}

impl Routing {
    /// The first match, and its rule.
    #[must_use]
    pub fn find(&self, request: &RequestView) -> Option<(&RouteMatch, &Arc<RouteRule>)> {
        let found = self.matches.iter().find(|candidate| candidate.matches(request))?;
        Some((found, self.rules.get(found.rule)?))
    }
}

impl RouteMatch {
    /// All conditions hold.
    #[must_use]
    pub fn matches(&self, request: &RequestView) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.path.matches(request.path)
            && self.headers.iter().all(|header| header.matches(request.headers))
            && self.query.iter().all(|key| {
                query_value(request.query, &key.name).is_some_and(|value| key.value.matches(value.as_bytes()))
            })
    }

    /// Orders matches by Gateway API precedence: the smaller comes first. Ties are the caller's (age, name).
    #[must_use]
    pub fn precedence(&self) -> impl Ord + use<> {
        let (kind, length) = match &self.path {
            PathMatch::Exact(path) => (0, path.len()),
            // Gateway API leaves its place open: before `/`, which nearly every set of routes ends with.
            PathMatch::Regex(pattern) => (1, pattern.as_str().len()),
            PathMatch::Prefix(path) => (2, path.len()),
            PathMatch::Any => (3, 0),
        };
        (kind, Reverse(length), self.method.is_none(), Reverse(self.headers.len()), Reverse(self.query.len()))
    }
}

impl KeyMatch<HeaderName> {
    /// Each line of a repeated header is looked at: no joined or last-wins reading.
    #[must_use]
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        headers.get_all(&self.name).iter().any(|line| self.value.matches(line.as_bytes()))
    }
}

impl ValueMatch {
    /// The condition holds for this value. What is not UTF-8 matches no pattern.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|value| pattern.matches(value)),
        }
    }
}

impl PathMatch {
    /// The condition holds for this path.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *path,
            Self::Regex(pattern) => pattern.matches(path),
            Self::Prefix(prefix) if &**prefix == "/" => path.starts_with('/'),
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl RouteRule {
    /// A backend by weight, from 64 random bits; `None` when no backend has any.
    #[must_use]
    pub fn pick_backend(&self, random: u64) -> Option<&WeightedBackend> {
        if self.total_weight == 0 {
            return None;
        }
        let mut left = random % self.total_weight;
        self.backends.iter().find(|backend| {
            let weight = u64::from(backend.weight);
            if left < weight {
                return true;
            }
            left -= weight;
            false
        })
    }
}

/// The first value of a query parameter, as sent.
pub(crate) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{Filters, ObjectName, Target},
        pattern::Pattern,
    };

    fn a_match(rule: usize, path: PathMatch) -> RouteMatch {
        RouteMatch { rule, path, method: None, headers: vec![], query: vec![] }
    }

    fn rule(name: &str, weights: &[u32]) -> RouteRule {
        let target = || Some(Target { service: ObjectName::new("a", "b"), port: 80 });
        RouteRule {
            name: name.into(),
            backends: weights
                .iter()
                .map(|&weight| WeightedBackend { target: target(), weight, filters: Filters::default() })
                .collect(),
            total_weight: weights.iter().map(|&weight| u64::from(weight)).sum(),
            ..RouteRule::default()
        }
    }

    #[test]
    fn a_prefix_matches_by_segment() {
        let prefix = PathMatch::Prefix("/a".into());
        for (path, expected) in [("/a", true), ("/a/", true), ("/a/b", true), ("/ab", false), ("/", false)] {
            assert_eq!(prefix.matches(path), expected, "{path}");
        }
        assert!(PathMatch::Prefix("/".into()).matches("/x"));
    }

    #[test]
    fn every_line_of_a_repeated_header_is_looked_at() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static("2"));
        let mut wanted = a_match(0, PathMatch::Any);
        wanted.headers = vec![KeyMatch { name: HeaderName::from_static("x-a"), value: ValueMatch::Exact("2".into()) }];
        let request = RequestView { method: &Method::GET, path: "/", query: None, headers: &headers };
        assert!(wanted.matches(&request));
    }

    #[test]
    fn a_query_parameter_matches_by_its_first_value() {
        let headers = HeaderMap::new();
        let mut wanted = a_match(0, PathMatch::Any);
        wanted.query = vec![KeyMatch { name: "v".into(), value: ValueMatch::Exact("2".into()) }];
        let view = |query| RequestView { method: &Method::GET, path: "/", query, headers: &headers };
        assert!(wanted.matches(&view(Some("a=1&v=2"))));
        assert!(!wanted.matches(&view(Some("v=1&v=2"))));
        assert!(!wanted.matches(&view(None)));
    }

    #[test]
    fn precedence_is_exact_then_pattern_then_longest_prefix_then_method_then_counts() {
        let mut with_method = a_match(3, PathMatch::Prefix("/a".into()));
        with_method.method = Some(Method::GET);
        let mut with_header = a_match(4, PathMatch::Prefix("/a".into()));
        with_header.headers =
            vec![KeyMatch { name: HeaderName::from_static("x"), value: ValueMatch::Exact("1".into()) }];
        let mut all = [
            a_match(6, PathMatch::Any),
            a_match(5, PathMatch::Prefix("/a".into())),
            with_header,
            with_method,
            a_match(2, PathMatch::Prefix("/a/b".into())),
            a_match(1, PathMatch::Regex(Pattern::new("/.").expect("a pattern"))),
            a_match(0, PathMatch::Exact("/a".into())),
        ];
        all.sort_by_key(RouteMatch::precedence);
        assert_eq!(all.iter().map(|m| m.rule).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_pattern_matches_path_header_and_query_whole() {
        let pattern = |text: &str| ValueMatch::Regex(Pattern::new(text).expect("a pattern"));
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("beta-7"));
        let Ok(path) = Pattern::new("/items/[0-9]+") else { panic!("a pattern") };
        let mut wanted = a_match(0, PathMatch::Regex(path));
        wanted.headers = vec![KeyMatch { name: HeaderName::from_static("x-a"), value: pattern("beta-.") }];
        wanted.query = vec![KeyMatch { name: "v".into(), value: pattern("[12]") }];
        let view = |path, query| RequestView { method: &Method::GET, path, query: Some(query), headers: &headers };
        assert!(wanted.matches(&view("/items/1", "v=2")));
        assert!(!wanted.matches(&view("/items/1/x", "v=2")));
        assert!(!wanted.matches(&view("/items/1", "v=22")));
    }

    #[test]
    fn a_backend_without_weight_gets_nothing() {
        let rule = rule("r", &[0, 3, 1]);
        let picked: Vec<u32> = (0..4).map(|n| rule.pick_backend(n).expect("some weight").weight).collect();
        assert_eq!(picked, [3, 3, 3, 1]);
        assert!(self::rule("r", &[0]).pick_backend(1).is_none());
    }

    fn paths() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof!["a", "b", "ab"], 0..4).prop_map(|parts| format!("/{}", parts.join("/")))
    }

    fn conditions() -> impl Strategy<Value = PathMatch> {
        prop_oneof![
            Just(PathMatch::Any),
            paths().prop_map(|p| PathMatch::Exact(p.into())),
            paths().prop_map(|p| PathMatch::Prefix(p.into())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn the_first_sorted_match_is_the_best_of_all_that_match(
            conditions in proptest::collection::vec(conditions(), 1..8),
            path in paths(),
        ) {
            let mut matches: Vec<_> = conditions.into_iter().enumerate().map(|(i, c)| a_match(i, c)).collect();
            matches.sort_by_key(RouteMatch::precedence);
            let rules = (0..matches.len()).map(|i| Arc::new(rule(&i.to_string(), &[1]))).collect();
            let routing = Routing { rules, matches };
            let headers = HeaderMap::new();
            let found = routing.find(&RequestView { method: &Method::GET, path: &path, query: None, headers: &headers });
            // The oracle: score by hand, no order of evaluation involved.
            let segments = |text: &str| text.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
            let score = |condition: &PathMatch| match condition {
                PathMatch::Any | PathMatch::Regex(_) => Some((0, 0)),
                PathMatch::Exact(p) => (**p == *path).then_some((2, p.len())),
                PathMatch::Prefix(p) => segments(&path).starts_with(&segments(p)).then_some((1, p.len())),
            };
            let best = routing.matches.iter().filter_map(|m| score(&m.path)).max();
            let got = found.and_then(|(found, _)| score(&found.path));
            prop_assert_eq!(got, best);
        }
    }
}
