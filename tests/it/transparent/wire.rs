//! What crosses the bridge between the hosts: a capture by tcpdump, read here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use super::lan::{HUB, Lan};
use crate::{net::eventually, process::Process};

/// A capture under way.
pub struct Capture {
    file: PathBuf,
    process: Process,
}

/// One direction of a TCP connection, and the first bytes that it carried.
#[derive(Debug)]
pub struct Flow {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub first: Vec<u8>,
}

impl Capture {
    pub fn start(lan: &Lan, dir: &Path) -> Self {
        let file = dir.join("wire.pcap");
        let mut command = lan.command(HUB, "tcpdump");
        command.args(["-i", "br0", "-Z", "root", "-U", "--immediate-mode", "-s", "0", "-w"]).arg(&file).arg("tcp");
        let process = Process::start(&mut command, &dir.join("tcpdump.log"));
        eventually("tcpdump", || match std::fs::metadata(&file) {
            Ok(file) if file.len() >= 24 => Ok(()),
            _ => Err(process.output()),
        });
        Self { file, process }
    }

    /// All bytes of it so far.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap_or_else(|error| panic!("{error}: {}", self.process.output()))
    }

    /// Flows with data, so far.
    pub fn flows(&self) -> Vec<Flow> {
        let bytes = self.bytes();
        let mut flows: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> = BTreeMap::new();
        let mut rest = bytes.get(24..).unwrap_or_default();
        while let Some((header, after)) = rest.split_at_checked(16) {
            let length = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
            let Some((packet, after)) = after.split_at_checked(length.try_into().expect("64 bits")) else { break };
            rest = after;
            if let Some((from, to, payload)) = tcp(packet)
                && !payload.is_empty()
            {
                flows.entry((from, to)).or_insert_with(|| payload.to_vec());
            }
        }
        flows.into_iter().map(|((from, to), first)| Flow { from, to, first }).collect()
    }
}

/// Ends and payload of a TCP segment in an Ethernet frame.
fn tcp(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let (kind, packet) = (frame.get(12..14)?, frame.get(14..)?);
    let (from, to, segment): (IpAddr, IpAddr, &[u8]) = match kind {
        [8, 0] => {
            // Short frames are padded: the length counts.
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let head = usize::from(packet.first()? & 0xf) * 4;
            let address = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
            (address(12)?.into(), address(16)?.into(), packet.get(head..total)?)
        }
        [0x86, 0xdd] if packet.get(6) == Some(&6) => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let address = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
            (address(8)?.into(), address(24)?.into(), packet.get(40..40 + length)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let head = usize::from(segment.get(12)? >> 4) * 4;
    Some((SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?), segment.get(head..)?))
}
