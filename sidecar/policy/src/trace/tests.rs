use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            HeaderValue::from_str(value).expect("a value"),
        );
    }
    map
}

fn parent(random: bool) -> Option<Parent> {
    Some(Parent { trace: TraceId::parse(TRACE)?, span: SpanId::parse(SPAN)?, random })
}

fn outgoing(formats: Formats) -> Outgoing {
    Outgoing {
        trace: TraceId::parse(TRACE).expect("valid"),
        span: SpanId::parse("b7ad6b7169203331").expect("valid"),
        parent: SpanId::parse(SPAN),
        sampled: true,
        debug: false,
        random: false,
        formats,
    }
}

fn field<'a>(map: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    map.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
}

#[test]
fn a_valid_traceparent_gives_parent_and_decision() {
    for (flags, sampled, random) in
        [("00", false, false), ("01", true, false), ("02", false, true), ("03", true, true), ("ff", true, true)]
    {
        let found = extract(&headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-{flags}"))]));
        assert_eq!(found.parent, parent(random), "{flags}");
        assert_eq!(found.sampled, Some(sampled), "{flags}");
        assert_eq!(found.formats, Formats { w3c: true, ..Formats::default() });
    }
}

#[test]
fn a_version_to_come_is_read_as_far_as_it_is_known() {
    for tail in ["", "-what-the-future-holds"] {
        let found = extract(&headers(&[("traceparent", &format!("cc-{TRACE}-{SPAN}-01{tail}"))]));
        assert_eq!(found.parent, parent(false), "{tail}");
    }
    let found = extract(&headers(&[("traceparent", &format!("cc-{TRACE}-{SPAN}-01.more"))]));
    assert_eq!(found.parent, None);
}

#[test]
fn what_breaks_the_rules_of_traceparent_counts_as_absent() {
    let zero = "0".repeat(32);
    for text in [
        format!("00-{TRACE}-{SPAN}-01-extra"),
        format!("00-{TRACE}-{SPAN}-01."),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{zero}-{SPAN}-01"),
        format!("00-{TRACE}-{}-01", &zero[..16]),
        format!("00-{}-{SPAN}-01", &TRACE[1..]),
        format!("00-{TRACE}0-{SPAN}-1"),
        format!("0x-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-.1"),
        format!("00-{TRACE}-{SPAN}-0"),
        format!("00_{TRACE}_{SPAN}_01"),
        format!("00-+{}-{SPAN}-01", &TRACE[1..]),
        String::new(),
    ] {
        assert_eq!(extract(&headers(&[("traceparent", &text)])), Incoming::default(), "{text}");
    }
    let twice = format!("00-{TRACE}-{SPAN}-01");
    assert_eq!(extract(&headers(&[("traceparent", &twice), ("traceparent", &twice)])), Incoming::default());
}

#[test]
fn b3_single_gives_parent_and_decision() {
    for (text, sampled, debug) in [
        (format!("{TRACE}-{SPAN}"), None, false),
        (format!("{TRACE}-{SPAN}-0"), Some(false), false),
        (format!("{TRACE}-{SPAN}-1"), Some(true), false),
        (format!("{TRACE}-{SPAN}-d"), Some(true), true),
        (format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"), Some(true), false),
    ] {
        let found = extract(&headers(&[("b3", &text)]));
        assert_eq!((found.parent, found.sampled, found.debug), (parent(false), sampled, debug), "{text}");
        assert!(found.formats.b3_single);
    }
    for (text, sampled) in [("0", false), ("1", true), ("d", true)] {
        let found = extract(&headers(&[("b3", text)]));
        assert_eq!((found.parent, found.sampled), (None, Some(sampled)), "{text}");
    }
    for text in
        ["", "2", "x", &format!("{TRACE}-{SPAN}-2"), &format!("{TRACE}-short-1"), &format!("{TRACE}-{SPAN}-1-x")]
    {
        assert_eq!(extract(&headers(&[("b3", text)])), Incoming::default(), "{text}");
    }
}

#[test]
fn b3_multi_gives_parent_and_decision_and_short_trace_ids_are_padded() {
    let ids = [("x-b3-traceid", &TRACE[16..]), ("x-b3-spanid", SPAN)];
    for (extra, sampled, debug) in [
        (None, None, false),
        (Some(("x-b3-sampled", "1")), Some(true), false),
        (Some(("x-b3-sampled", "true")), Some(true), false),
        (Some(("x-b3-sampled", "0")), Some(false), false),
        (Some(("x-b3-flags", "1")), Some(true), true),
    ] {
        let fields: Vec<_> = ids.into_iter().chain(extra).collect();
        let found = extract(&headers(&fields));
        let trace = found.parent.expect("a parent").trace;
        assert_eq!(trace.to_string(), format!("{}{}", "0".repeat(16), &TRACE[16..]));
        assert_eq!((found.sampled, found.debug), (sampled, debug), "{extra:?}");
    }
    let alone = extract(&headers(&[("x-b3-sampled", "0")]));
    assert_eq!((alone.parent, alone.sampled), (None, Some(false)));
}

#[test]
fn w3c_comes_before_b3_and_both_are_answered_in_kind() {
    let other = "0af7651916cd43dd8448eb211c80319c";
    let b3 = format!("{other}-{SPAN}-0");
    let mut map = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01")), ("b3", &b3), ("tracestate", "a=1")]);
    let found = extract(&map);
    assert_eq!((found.parent, found.sampled), (parent(false), Some(true)));
    inject(&mut map, &outgoing(found.formats));
    assert_eq!(field(&map, "traceparent"), [format!("00-{TRACE}-b7ad6b7169203331-01")]);
    assert_eq!(field(&map, "b3"), [format!("{TRACE}-b7ad6b7169203331-1-{SPAN}")]);
    assert_eq!(field(&map, "tracestate"), ["a=1"], "not ours");
    assert!(map.get("x-b3-traceid").is_none());
}

#[test]
fn the_list_of_an_invalid_context_goes_with_it() {
    let mut map = headers(&[("traceparent", "nonsense"), ("tracestate", "a=1"), ("baggage", "k=v")]);
    let found = extract(&map);
    inject(&mut map, &outgoing(found.formats));
    assert!(map.get("tracestate").is_none());
    assert_eq!(field(&map, "baggage"), ["k=v"], "baggage has nothing to do with the trace");
}

#[test]
fn b3_multi_is_written_with_its_companions_and_debug_replaces_the_decision() {
    let mut map = headers(&[("x-b3-sampled", "1"), ("x-b3-flags", "0"), ("b3", "nonsense")]);
    let formats = Formats { b3_multi: true, ..Formats::default() };
    inject(&mut map, &outgoing(formats));
    assert_eq!(field(&map, "x-b3-traceid"), [TRACE]);
    assert_eq!(field(&map, "x-b3-spanid"), ["b7ad6b7169203331"]);
    assert!(map.get("b3").is_none(), "what broke the rules goes");
    assert_eq!(field(&map, "x-b3-parentspanid"), [SPAN]);
    assert_eq!((field(&map, "x-b3-sampled"), field(&map, "x-b3-flags")), (vec!["1"], vec![]));
    inject(&mut map, &Outgoing { debug: true, parent: None, ..outgoing(formats) });
    assert_eq!((field(&map, "x-b3-sampled"), field(&map, "x-b3-flags")), (vec![], vec!["1"]));
    assert!(map.get("x-b3-parentspanid").is_none());
}

#[test]
fn what_is_written_is_what_is_read() {
    for sampled in [true, false] {
        for random in [true, false] {
            let out = Outgoing { sampled, random, ..outgoing(Formats { b3_single: true, ..Formats::default() }) };
            let mut map = HeaderMap::new();
            inject(&mut map, &out);
            let found = extract(&map);
            assert_eq!(found.parent, Some(Parent { trace: out.trace, span: out.span, random }));
            assert_eq!(found.sampled, Some(sampled));
            map.remove(TRACEPARENT);
            assert_eq!(extract(&map).sampled, Some(sampled));
        }
    }
}

#[test]
fn the_callers_decision_counts_and_without_one_the_share_does() {
    let trace = |low: u64| TraceId::random([7, low]);
    let (none, yes, no) = (
        Incoming::default(),
        Incoming { sampled: Some(true), ..Incoming::default() },
        Incoming { sampled: Some(false), ..Incoming::default() },
    );
    assert!(Sampling::NONE.records(&yes, trace(u64::MAX)));
    assert!(!Sampling::ALL.records(&no, trace(0)));
    assert!(Sampling::ALL.records(&none, trace(u64::MAX)));
    assert!(!Sampling::NONE.records(&none, trace(0)));
    assert!(Sampling::NONE.records(&Incoming { debug: true, ..no }, trace(1)));
    let share = Sampling::per_million(10_000);
    // Multiples of an odd number of this kind lie evenly among all numbers.
    let low = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let recorded = (0..100_000u64).filter(|&n| share.records(&none, trace(low(n)))).count();
    assert!((900..=1100).contains(&recorded), "{recorded} of 100000 at 1 %");
}

#[test]
fn ids_are_never_zero() {
    assert_eq!(TraceId::random([0, 0]).to_string(), format!("{}1", "0".repeat(31)));
    assert_eq!(SpanId::random(0).to_string(), "0000000000000001");
    assert_eq!((TraceId::from_bytes([0; 16]), SpanId::from_bytes([0; 8])), (None, None));
}
