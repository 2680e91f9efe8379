//! Patterns of canonical paths. Strictly, segments are compared as they are; loosely, as the most lenient app would read
//! them: percent-encoding undone, parameters (`;v=1`), trailing slashes and segments that are nothing else left out.

use crate::model::{PathPattern, Segment};

/// Whether the path matches.
pub fn matches(pattern: &PathPattern, path: &str, loose: bool) -> bool {
    let PathPattern::Segments { segments, below } = pattern else { return true };
    let Some(path) = path.strip_prefix('/') else { return false };
    if loose {
        let path = path.split('/').map(without_parameters).filter(|segment| !segment.is_empty());
        let segments = segments.iter().filter(|segment| !segment.is_empty());
        return along(segments, *below, path, |known, segment| decoded(known).eq(decoded(segment)));
    }
    along(segments.iter(), *below, path.split('/'), |known, segment| known == segment)
}

fn along<'a, 'p>(
    pattern: impl Iterator<Item = &'a Segment>,
    below: bool,
    mut path: impl Iterator<Item = &'p str>,
    same: impl Fn(&str, &str) -> bool,
) -> bool {
    for known in pattern {
        let Some(segment) = path.next() else { return false };
        let fits = match known {
            Segment::One => !segment.is_empty(),
            Segment::Literal(literal) => same(literal, segment),
        };
        if !fits {
            return false;
        }
    }
    below || path.next().is_none()
}

impl Segment {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Literal(text) if text.is_empty())
    }
}

fn without_parameters(segment: &str) -> &str {
    segment.split(';').next().unwrap_or(segment)
}

/// The bytes that the text stands for; what is no escape stands for itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, more) = rest.split_first()?;
        if first == b'%'
            && let [high, low, after @ ..] = more
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            rest = after;
            return Some(high << 4 | low);
        }
        rest = more;
        Some(first)
    })
}
