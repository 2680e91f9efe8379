//! As much of DNS messages (RFC 1035, RFC 6891) as it takes to answer for the mesh: one question in, a few addresses or
//! their absence out. All else is passed on as bytes and never read here.

use std::net::IpAddr;

/// Length of a header.
const HEADER: usize = 12;
/// Longest name on the wire.
const NAME: usize = 255;
/// Bytes that we take over UDP, as everybody does since 2020.
const UDP: u16 = 1232;

/// Type A.
pub const A: u16 = 1;
/// Type AAAA.
pub const AAAA: u16 = 28;
const SOA: u16 = 6;
const OPT: u16 = 41;
const IN: u16 = 1;

/// What came of a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Code {
    /// There is such a name.
    NoError = 0,
    /// It is no question.
    FormatError = 1,
    /// Nobody could say.
    ServerFailure = 2,
    /// There is no such name.
    NameError = 3,
}

/// A question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Query {
    /// Lower-case, without the dot at the end.
    pub name: String,
    /// A, AAAA and so on.
    pub kind: u16,
    /// As it came: name, type and class.
    question: Vec<u8>,
    id: [u8; 2],
    recursion_desired: bool,
    edns: bool,
}

/// The number that tells a message from others.
#[must_use]
pub fn id(message: &[u8]) -> Option<[u8; 2]> {
    message.first_chunk::<2>().copied()
}

impl Query {
    /// Reads a message.
    ///
    /// # Errors
    /// The answer to what is no question; `None`: it has none.
    pub fn parse(message: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let header = message.first_chunk::<HEADER>().ok_or(None)?;
        let [id0, id1, flags, _, q0, q1, rest @ ..] = *header;
        if flags & 0x80 != 0 {
            // A response: answering would begin an endless talk.
            return Err(None);
        }
        let refused = || Some(head([id0, id1], flags & 1 != 0, Code::FormatError, [0, 0, 0]));
        let standard = flags & 0x78 == 0;
        if !standard || u16::from_be_bytes([q0, q1]) != 1 {
            return Err(refused());
        }
        let (name, end) = name(message).ok_or_else(refused)?;
        let kind_and_class =
            message.get(end..end + 4).and_then(|bytes| bytes.first_chunk::<4>()).ok_or_else(refused)?;
        let [k0, k1, c0, c1] = *kind_and_class;
        if u16::from_be_bytes([c0, c1]) != IN {
            return Err(refused());
        }
        // The only record of a question, if there is one, is OPT: root name, then its type.
        let edns = rest == [0, 0, 0, 0, 0, 1]
            && message.get(end + 4..end + 7).is_some_and(|record| record == [&[0][..], &OPT.to_be_bytes()].concat());
        Ok(Self {
            name,
            kind: u16::from_be_bytes([k0, k1]),
            question: message[HEADER..end + 4].to_vec(),
            id: [id0, id1],
            recursion_desired: flags & 1 != 0,
            edns,
        })
    }

    /// Whether a message is a response to this very question, asked under `id`.
    #[must_use]
    pub fn is_answered_by(&self, id: [u8; 2], message: &[u8]) -> bool {
        let end = HEADER + self.question.len();
        message.len() >= end
            && message[..2] == id
            && message[2] & 0x80 != 0
            && message[HEADER..end].eq_ignore_ascii_case(&self.question)
    }

    /// The answer with these addresses, of which those of the type asked for count; without any, and for other types,
    /// that there is such a name and nothing of that type.
    #[must_use]
    pub fn addresses(&self, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let mut records = Vec::new();
        let mut count = 0;
        for address in addresses {
            let data = match (self.kind, address) {
                (A, IpAddr::V4(address)) => address.octets().to_vec(),
                (AAAA, IpAddr::V6(address)) => address.octets().to_vec(),
                _ => continue,
            };
            record(&mut records, offset(HEADER), self.kind, ttl, &data);
            count += 1;
        }
        if count == 0 {
            return self.nothing(Code::NoError, ttl);
        }
        self.message(Code::NoError, [count, 0], &records)
    }

    /// That there is nothing: of the type, or of the name. Believed for `ttl` seconds.
    #[must_use]
    pub fn nothing(&self, code: Code, ttl: u32) -> Vec<u8> {
        let mut records = Vec::new();
        if code != Code::ServerFailure {
            // The zone is the last label of the name; without SOA nobody would keep the answer (RFC 2308).
            let last = self.name.rfind('.').map_or(0, |dot| dot + 1);
            let zone = offset(HEADER + last);
            let numbers = [1, ttl, ttl, ttl, ttl].map(u32::to_be_bytes);
            record(&mut records, zone, SOA, ttl, &[&zone[..], &zone, numbers.as_flattened()].concat());
        }
        self.message(code, [0, u8::from(!records.is_empty())], &records)
    }

    fn message(&self, code: Code, [answers, authorities]: [u8; 2], records: &[u8]) -> Vec<u8> {
        let counts = [answers, authorities, u8::from(self.edns)];
        let mut message = head(self.id, self.recursion_desired, code, counts);
        message[5] = 1;
        message.extend_from_slice(&self.question);
        message.extend_from_slice(records);
        if self.edns {
            message.push(0);
            message.extend_from_slice(&OPT.to_be_bytes());
            message.extend_from_slice(&UDP.to_be_bytes());
            message.extend_from_slice(&[0; 6]);
        }
        message
    }
}

/// A header: response, authoritative, recursion available; no question.
fn head(id: [u8; 2], recursion_desired: bool, code: Code, [answers, authorities, others]: [u8; 3]) -> Vec<u8> {
    vec![
        id[0],
        id[1],
        0x84 | u8::from(recursion_desired),
        0x80 | code as u8,
        0,
        0,
        0,
        answers,
        0,
        authorities,
        0,
        others,
    ]
}

fn record(out: &mut Vec<u8>, name: [u8; 2], kind: u16, ttl: u32, data: &[u8]) {
    out.extend_from_slice(&name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

/// A name that was written before.
fn offset(at: usize) -> [u8; 2] {
    (0xc000 | u16::try_from(at).unwrap_or(0)).to_be_bytes()
}

/// The name of the question and where it ends. Compression points back, and there is nothing before it.
fn name(message: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::new(), HEADER);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        let label = message.get(at..at + length).filter(|_| length < 64 && at + length < HEADER + NAME)?;
        if !name.is_empty() {
            name.push('.');
        }
        // A dot or a byte above ASCII in a label is nobody's name here: it gets one that no service can have.
        name.extend(label.iter().map(|byte| match byte {
            b'.' | 0x80.. => '\\',
            byte => char::from(byte.to_ascii_lowercase()),
        }));
        at += length;
    }
}

#[cfg(test)]
mod tests;
