//! Addresses that stand for services: the DNS listener gives them to the app, and a connection to one names its service.
//! They are taken from a part of 127.0.0.0/8, so that there is always a route and no packet ever leaves the machine, and
//! follow from the service's name, so that an address that the app remembers stays right (ADR 0002).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{PoisonError, RwLock},
};

use weft_policy::model::ObjectName;

/// First address of the range.
pub const RANGE: Ipv4Addr = Ipv4Addr::new(127, 192, 0, 0);
/// Bits of its prefix.
pub const PREFIX: u32 = 10;
/// Addresses in it.
const SIZE: u32 = 1 << (32 - PREFIX);
/// Services that may have one: what the app asks for is bounded elsewhere, this is for what it asked for once.
const SERVICES: usize = 16 * 1024;

/// Who has which address.
#[derive(Debug, Default)]
pub struct VirtualIps(RwLock<Given>);

#[derive(Debug, Default)]
struct Given {
    services: HashMap<Ipv4Addr, ObjectName>,
    addresses: HashMap<ObjectName, Ipv4Addr>,
}

/// Whether an address is one of these.
#[must_use]
pub fn is_virtual(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.to_bits() >> (32 - PREFIX) == RANGE.to_bits() >> (32 - PREFIX))
}

impl VirtualIps {
    /// The address of a service, the same one whenever it is asked for; `None`: as many as there may be have one.
    pub fn address(&self, service: &ObjectName) -> Option<Ipv4Addr> {
        let known = |given: &Given| given.addresses.get(service).copied();
        if let Some(address) = known(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(address);
        }
        let mut given = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = known(&given) {
            return Some(address);
        }
        if given.addresses.len() >= SERVICES {
            return None;
        }
        // The first and the last of the range look like a network's own and its broadcast.
        let mut offset = fnv(service.as_str()) % (SIZE - 2);
        let address = loop {
            let address = Ipv4Addr::from_bits(RANGE.to_bits() + 1 + offset);
            if !given.services.contains_key(&address) {
                break address;
            }
            offset = (offset + 1) % (SIZE - 2);
        };
        given.services.insert(address, service.clone());
        given.addresses.insert(service.clone(), address);
        Some(address)
    }

    /// The service that has an address.
    pub fn service(&self, address: IpAddr) -> Option<ObjectName> {
        let IpAddr::V4(address) = address else { return None };
        self.0.read().unwrap_or_else(PoisonError::into_inner).services.get(&address).cloned()
    }
}

/// FNV-1a: the same in every build and on every machine.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_address_and_shares_it_with_nobody() {
        let (ips, again) = (VirtualIps::default(), VirtualIps::default());
        let names: Vec<_> = (0..5000).map(|n| ObjectName::new("shop", &format!("s{n}"))).collect();
        let first: Vec<_> = names.iter().map(|name| ips.address(name).expect("room")).collect();
        for (name, address) in names.iter().zip(&first) {
            assert!(is_virtual((*address).into()), "{address}");
            assert_eq!(ips.address(name), Some(*address));
            assert_eq!(ips.service((*address).into()).as_ref(), Some(name));
        }
        assert_eq!(again.address(&names[42]), Some(first[42]), "it follows from the name");
        assert_eq!(ips.service("127.0.0.1".parse().expect("valid")), None);
        assert!(!is_virtual("127.128.0.1".parse().expect("valid")) && !is_virtual("::1".parse().expect("valid")));
    }

    #[test]
    fn there_is_an_end_to_them() {
        let ips = VirtualIps::default();
        let given = (0..SERVICES + 1).filter_map(|n| ips.address(&ObjectName::new("shop", &format!("s{n}")))).count();
        assert_eq!(given, SERVICES);
    }
}
