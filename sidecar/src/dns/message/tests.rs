//! The codec against bytes written by hand, and against rubbish.

use proptest::prelude::*;

use super::*;

/// `id` 0x1234, recursion desired, one question.
fn query(name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).expect("short"));
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    if edns {
        message.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    }
    message
}

#[test]
fn an_address_is_answered_with_the_question_and_one_record() {
    let message = query("Catalog.Shop.mesh", A, false);
    let parsed = Query::parse(&message).expect("a question");
    assert_eq!((parsed.name.as_str(), parsed.kind), ("catalog.shop.mesh", A));
    let answer = parsed.addresses(&["127.192.0.7".parse().expect("valid"), "::1".parse().expect("valid")], 30);
    assert_eq!(answer[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    assert_eq!(answer[12..message.len()], message[12..], "the question as it was asked, capitals and all");
    assert_eq!(answer[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 127, 192, 0, 7]);
}

#[test]
fn another_type_of_a_name_that_exists_is_no_data_and_not_no_name() {
    for kind in [AAAA, 16, 33, 65, 255] {
        let parsed = Query::parse(&query("catalog", kind, true)).expect("a question");
        let answer = parsed.addresses(&["127.192.0.7".parse().expect("valid")], 30);
        assert_eq!(answer[3] & 0xf, 0, "{kind}");
        assert_eq!(answer[6..12], [0, 0, 0, 1, 0, 1], "no answer, a SOA, and OPT since it was asked with one");
    }
    let parsed = Query::parse(&query("a.b.mesh", A, false)).expect("a question");
    let answer = parsed.nothing(Code::NameError, 5);
    assert_eq!((answer[3] & 0xf, &answer[6..12]), (3, &[0, 0, 0, 1, 0, 0][..]));
    let end = 12 + 10 + 4;
    assert_eq!(answer[end..end + 2], [0xc0, 12 + 4], "the zone is mesh");
    assert_eq!(answer[16..22], *b"\x04mesh\0");
}

#[test]
fn what_is_no_question_is_refused_and_a_response_is_not_answered() {
    let mut response = query("a", A, false);
    response[2] |= 0x80;
    assert_eq!(Query::parse(&response), Err(None));
    assert_eq!(Query::parse(&response[..11]), Err(None));
    let mut two = query("a", A, false);
    two[5] = 2;
    let mut pointer = query("a", A, false);
    pointer[12] = 0xc0;
    let mut status = query("a", A, false);
    status[2] |= 0x10;
    let long = query(&["a23456789.b23456789.c23456789.d23456789"; 7].join("."), A, false);
    for wrong in [two, pointer, status, long, query("a", A, false)[..14].to_vec()] {
        let refused = Query::parse(&wrong).expect_err("no question").expect("an answer");
        assert_eq!((&refused[..2], refused[3] & 0xf), (&[0x12, 0x34][..], 1));
    }
}

#[test]
fn only_a_response_to_the_same_question_under_the_same_number_is_one() {
    let parsed = Query::parse(&query("a.example", A, false)).expect("a question");
    let mut response = query("A.example", A, false);
    response[2] |= 0x80;
    assert!(parsed.is_answered_by([0x12, 0x34], &response));
    assert!(!parsed.is_answered_by([0x12, 0x35], &response));
    assert!(!parsed.is_answered_by([0x12, 0x34], &query("a.example", A, false)));
    let mut other = query("b.example", A, false);
    other[2] |= 0x80;
    assert!(!parsed.is_answered_by([0x12, 0x34], &other));
}

proptest! {
    #[test]
    fn nothing_that_comes_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(query) = Query::parse(&bytes) {
            let _ = query.is_answered_by([0, 0], &bytes);
            prop_assert!(query.addresses(&[], 1).len() > 12);
        }
    }
}
