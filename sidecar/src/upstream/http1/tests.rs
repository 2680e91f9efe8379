//! The codec against answers that are cut anywhere, against hyper's client, and against peers that misbehave.

mod peers;
mod writes;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::{
    body::Decoder,
    head::{Asked, Reader},
};

const GET: Asked = Asked { head: false, upgrade: false };

/// What was read of a whole connection.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    /// Bytes after the answer.
    more: Vec<u8>,
    keep: bool,
}

fn fields(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    map.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

/// Reads pieces as a connection does, and its end after them.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, asked: Asked) -> Result<Answer, String> {
    let (mut reader, mut input, mut rest) = (Reader::default(), BytesMut::new(), Bytes::new());
    let (mut answer, mut decoder): (Option<Answer>, _) = (None, Decoder::Done);
    for piece in pieces {
        input.extend_from_slice(piece);
        let Some(answer) = &mut answer else {
            let Some(head) = reader.read(&mut input, &mut rest, &mut HeaderMap::new(), asked)? else { continue };
            let (status, keep) = (head.status.as_u16(), head.keep);
            decoder = head.decoder;
            let fields = fields(&head.fields);
            let first = Answer { status, fields, body: Vec::new(), trailers: Vec::new(), more: Vec::new(), keep };
            decode(&mut decoder, &mut rest, answer.insert(first))?;
            continue;
        };
        let mut bytes = input.split().freeze();
        decode(&mut decoder, &mut bytes, answer)?;
    }
    let answer = answer.ok_or("no head")?;
    decoder.end()?;
    Ok(answer)
}

fn decode(decoder: &mut Decoder, bytes: &mut Bytes, answer: &mut Answer) -> Result<(), String> {
    while let Some(frame) = decoder.decode(bytes)? {
        match frame.into_data() {
            Ok(data) => {
                assert!(!data.is_empty(), "an empty frame is no progress");
                answer.body.extend_from_slice(&data);
            }
            Err(frame) => answer.trailers = fields(frame.trailers_ref().expect("trailers")),
        }
    }
    assert!(bytes.is_empty() || *decoder == Decoder::Done, "what is not taken would be lost");
    answer.more.extend_from_slice(bytes);
    Ok(())
}

/// The same by hyper's client: status, body and trailers of an answer that is whole.
async fn by_hyper(bytes: Vec<u8>) -> Option<(u16, Vec<u8>, Vec<(String, Vec<u8>)>)> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(128)
        .handshake(TokioIo::new(near))
        .await
        .expect("no bytes are exchanged");
    tokio::spawn(connection);
    let request = Request::builder().uri("/").header("host", "a").body(Empty::<Bytes>::new()).expect("valid");
    let answer = sender.send_request(request);
    let talk = async {
        // What comes before the request is no answer to it.
        let mut byte = [0; 1];
        tokio::io::AsyncReadExt::read_exact(&mut far, &mut byte).await.expect("a request");
        far.write_all(&bytes).await.expect("open");
        far.shutdown().await.expect("open");
        far
    };
    let (answer, _far) = tokio::join!(answer, talk);
    let answer = answer.ok()?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.ok()?;
    let trailers = body.trailers().map(fields).unwrap_or_default();
    Some((status, body.to_bytes().to_vec(), trailers))
}

/// How an answer is framed, and what it has to give.
#[derive(Clone, Debug)]
struct Made {
    wire: Vec<u8>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    keep: bool,
    /// Nothing after it belongs to it.
    ends: bool,
}

fn made() -> impl Strategy<Value = Made> {
    let body = prop::collection::vec(any::<u8>(), 0..120);
    let kind = prop_oneof![Just("length"), Just("chunked"), Just("trailers"), Just("close")];
    let extension = prop_oneof![Just(""), Just(";a"), Just(" ; a=\"b c\""), Just("  ")];
    (body, kind, extension, prop::collection::vec(1_usize..40, 1..6), 0_usize..3).prop_map(
        |(body, kind, extension, sizes, interim)| {
            let mut wire = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n".repeat(interim);
            wire.extend_from_slice(b"HTTP/1.1 200 OK\r\nX-A:  b \r\n");
            let mut trailers = Vec::new();
            match kind {
                "length" => {
                    wire.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                    wire.extend_from_slice(&body);
                }
                "close" => {
                    wire.extend_from_slice(b"\r\n");
                    wire.extend_from_slice(&body);
                }
                _ => {
                    wire.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                    let mut left = &body[..];
                    for size in sizes.iter().cycle() {
                        let (chunk, rest) = left.split_at((*size).min(left.len()));
                        left = rest;
                        wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
                        if chunk.is_empty() {
                            break;
                        }
                        wire.extend_from_slice(&[chunk, b"\r\n"].concat());
                    }
                    if kind == "trailers" {
                        wire.extend_from_slice(b"X-Sum: 1\r\nx-b:2\r\n");
                        trailers = vec![("x-sum".into(), b"1".to_vec()), ("x-b".into(), b"2".to_vec())];
                    }
                    wire.extend_from_slice(b"\r\n");
                }
            }
            let ends = kind != "close";
            Made { wire, body, trailers, keep: ends, ends }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_answer_is_the_same_wherever_it_is_cut(made in made(), more in prop::collection::vec(any::<u8>(), 0..20)) {
        let more = if made.ends { more } else { Vec::new() };
        let wire = [&made.wire[..], &more].concat();
        let whole = read([&wire[..]], GET).expect("an answer");
        prop_assert_eq!(&whole.body, &made.body);
        prop_assert_eq!(&whole.trailers, &made.trailers);
        prop_assert_eq!((&whole.more, whole.keep), (&more, made.keep));
        for cut in 0..wire.len() {
            let (head, tail) = wire.split_at(cut);
            prop_assert_eq!(&read([head, tail], GET).expect("an answer"), &whole, "cut at {}", cut);
        }
        prop_assert_eq!(&read(wire.chunks(1), GET).expect("an answer"), &whole);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_never_whole(made in made()) {
        for end in 0..made.wire.len() {
            let short = read([&made.wire[..end]], GET);
            // A body that ends with its connection has no other end.
            let open = !made.ends && short.as_ref().is_ok_and(|short| made.body.starts_with(&short.body));
            prop_assert!(short.is_err() || open, "{} of {} bytes: {:?}", end, made.wire.len(), short);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_taken_for_an_answer_is_what_hyper_takes_it_for(
        made in made(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), mutation()), 1..4),
    ) {
        let mut wire = made.wire;
        for (at, mutation) in changes {
            let at = at.index(wire.len());
            mutation.apply(&mut wire, at);
        }
        let ours = read([&wire[..]], GET);
        for cut in 0..wire.len() {
            let (head, tail) = wire.split_at(cut);
            prop_assert_eq!(read([head, tail], GET).ok(), ours.clone().ok(), "cut at {}", cut);
        }
        if let Ok(ours) = ours {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let theirs = runtime.block_on(by_hyper(wire.clone()));
            prop_assert_eq!(theirs, Some((ours.status, ours.body, ours.trailers)), "{}", wire.escape_ascii());
        }
    }
}

/// A change of some bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Put(&'static [u8]),
    Remove(usize),
    Byte(u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let put: [&'static [u8]; 14] = [
        b"\n",
        b"\r",
        b"\r\n",
        b" ",
        b"0",
        b"5",
        b"f",
        b";",
        b",",
        b":",
        b"\0",
        b"\r\nContent-Length: 5",
        b"\r\nTransfer-Encoding: chunked",
        b"\r\nConnection: close",
    ];
    prop_oneof![
        3 => prop::sample::select(put.to_vec()).prop_map(Mutation::Put),
        1 => (1_usize..5).prop_map(Mutation::Remove),
        1 => any::<u8>().prop_map(Mutation::Byte),
    ]
}

impl Mutation {
    fn apply(&self, wire: &mut Vec<u8>, at: usize) {
        match self {
            Self::Put(bytes) => drop(wire.splice(at..at, bytes.iter().copied())),
            Self::Remove(count) => drop(wire.drain(at..(at + count).min(wire.len()))),
            Self::Byte(byte) => wire[at] = *byte,
        }
    }
}

#[test]
fn what_two_readers_could_take_for_two_things_is_refused() {
    for bad in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n X-A: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
        "HTTP/1.1 200 OK\r\nX-A: b\rX-B: c\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: b\0\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length 0\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/2 200\r\nContent-Length: 0\r\n\r\n",
        "hello",
    ] {
        assert!(read([bad.as_bytes()], GET).is_err(), "{bad:?}");
    }
}

#[test]
fn chunks_that_break_their_grammar_are_refused() {
    for bad in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5;a\r \nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nX-A: b\n\r\n",
        "5\r\nhello\r\n0\r\nX-A : b\r\n\r\n",
        "5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n",
        "5\r\nhello\r\n0\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bad}");
        assert!(read([answer.as_bytes()], GET).is_err(), "{bad:?}");
    }
}

#[test]
fn what_a_peer_can_make_long_has_a_bound() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
    assert!(read([head(&"x: y\r\n".repeat(127)).as_bytes()], GET).is_ok());
    assert!(read([head(&"x: y\r\n".repeat(128)).as_bytes()], GET).is_err(), "fields");
    assert!(read([head(&format!("x: {}\r\n", "y".repeat(65_000))).as_bytes()], GET).is_ok());
    assert!(read([head(&format!("x: {}\r\n", "y".repeat(66_000))).as_bytes()], GET).is_err(), "bytes");
    let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'y'; 70_000]].concat();
    let error = read(endless.chunks(1000), GET).expect_err("no head");
    assert!(error.contains("longer"), "{error}");
    let interim = |count| ["HTTP/1.1 102 Processing\r\n\r\n".repeat(count), head("")].concat();
    assert!(read([interim(16).as_bytes()], GET).is_ok());
    assert!(read([interim(17).as_bytes()], GET).is_err(), "interim answers");
    let chunked = |rest: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    let extension = |length| chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(length)));
    assert!(read([extension(16_000).as_bytes()], GET).is_ok());
    assert!(read([extension(17_000).as_bytes()], GET).is_err(), "extensions");
    let trailer = |length| chunked(&format!("0\r\nx: {}\r\n\r\n", "t".repeat(length)));
    assert!(read([trailer(16_000).as_bytes()], GET).is_ok());
    assert!(read([trailer(17_000).as_bytes()], GET).is_err(), "trailers");
}

#[test]
fn what_has_no_body_has_none_whatever_its_fields_say() {
    let head = Asked { head: true, ..GET };
    for (asked, start) in [(head, "200 OK"), (GET, "204 No Content"), (GET, "304 Not Modified")] {
        for fields in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", ""] {
            let wire = format!("HTTP/1.1 {start}\r\n{fields}\r\nhello");
            let answer = read([wire.as_bytes()], asked).expect("an answer");
            assert_eq!((&answer.body[..], &answer.more[..]), (&b""[..], &b"hello"[..]), "{wire}");
            assert!(answer.keep);
        }
    }
}

#[test]
fn a_connection_is_kept_as_both_ends_understand_it() {
    for (line, fields, keep) in [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: close\r\n", false),
        ("HTTP/1.1", "Connection: x, Close\r\n", false),
        ("HTTP/1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("HTTP/1.1", "Connection: keep-alive\r\n", true),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ("HTTP/1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let wire = format!("{line} 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
        assert_eq!(read([wire.as_bytes()], GET).expect("an answer").keep, keep, "{wire}");
    }
    let wire = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nhello";
    assert!(!read([wire.as_bytes()], GET).expect("an answer").keep, "its body ends with the connection");
}

/// A deadline for what could hang.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("not within ten seconds")
}
