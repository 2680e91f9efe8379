//! Addresses that the app has dialled: whether anything in the mesh has them. They are subscribed to as names of endpoint
//! slices, `address/10.0.0.2`; the answer is the slices of what has the address, or that nothing has it.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use weft_proto::{ResourceType, discovery::DeltaDiscoveryRequest};

use super::{State, subscribe};

const PREFIX: &str = "address/";

/// By address, whether it was answered that nothing has it.
#[derive(Default)]
pub(super) struct Addresses(HashMap<IpAddr, bool>);

impl Addresses {
    /// The names to subscribe to on a new stream.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.0.keys().map(name)
    }

    /// Takes the answer that nothing has an address. False when the name is none of an address.
    pub(super) fn removed(&mut self, name: &str) -> bool {
        let Some(address) = name.strip_prefix(PREFIX) else { return false };
        if let Some(absent) = address.parse().ok().and_then(|address: IpAddr| self.0.get_mut(&address)) {
            *absent = true;
        }
        true
    }
}

fn name(address: &IpAddr) -> String {
    format!("{PREFIX}{address}")
}

impl State {
    /// Subscribed addresses.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.addresses.0.len()
    }

    /// Addresses of which it is known that nothing in the mesh has them, unless something in a snapshot has.
    #[must_use]
    pub fn absent_addresses(&self) -> HashSet<IpAddr> {
        self.addresses.0.iter().filter(|(_, absent)| **absent).map(|(address, _)| *address).collect()
    }

    /// Subscribes to addresses.
    pub fn want_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Option<DeltaDiscoveryRequest> {
        let mut new = Vec::new();
        for address in addresses {
            self.addresses.0.entry(address).or_insert_with(|| {
                new.push(name(&address));
                false
            });
        }
        (!new.is_empty()).then(|| subscribe(ResourceType::EndpointSlice, new))
    }

    /// Unsubscribes from what is not there, so that there is room for what may be.
    pub fn forget_absent(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let referenced: HashSet<_> = self
            .services
            .values()
            .flat_map(|service| service.referenced().map(|target| target.service.clone()))
            .collect();
        let forgotten = |name: &_| !self.declared.contains(name) && !referenced.contains(name);
        let services: Vec<_> = self.absent.iter().filter(|name| forgotten(name)).cloned().collect();
        let addresses: Vec<_> = self.addresses.0.extract_if(|_, absent| *absent).map(|(address, _)| address).collect();
        for service in &services {
            self.absent.remove(service);
            self.wanted.remove(service);
        }
        let services: Vec<String> = services.iter().map(ToString::to_string).collect();
        let slices = services.iter().cloned().chain(addresses.iter().map(name)).collect();
        [(ResourceType::EndpointSlice, slices), (ResourceType::Service, services)]
            .into_iter()
            .filter(|(_, names): &(_, Vec<String>)| !names.is_empty())
            .map(|(kind, names)| DeltaDiscoveryRequest {
                type_url: kind.type_url().into(),
                resource_names_unsubscribe: names,
                ..DeltaDiscoveryRequest::default()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use weft_policy::model::ObjectName;
    use weft_proto::discovery::DeltaDiscoveryResponse;

    use super::*;

    fn removal(kind: ResourceType, name: &str) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            removed_resources: vec![name.into()],
            ..DeltaDiscoveryResponse::default()
        }
    }

    #[test]
    fn an_address_is_asked_for_once_and_again_on_a_new_stream() {
        let mut state = State::new("a/me", []);
        let address = "10.0.0.2".parse().expect("valid");
        let request = state.want_addresses([address, address]).expect("a request");
        assert_eq!(request.resource_names_subscribe, ["address/10.0.0.2"]);
        assert_eq!(state.want_addresses([address]), None);
        let opening = state.open();
        let slices = opening.iter().find(|request| request.type_url.ends_with("EndpointSlice")).expect("asked for");
        assert_eq!(slices.resource_names_subscribe, ["address/10.0.0.2"]);
        assert!(state.absent_addresses().is_empty());
        state.apply(removal(ResourceType::EndpointSlice, "address/10.0.0.2"));
        assert_eq!(state.absent_addresses(), HashSet::from([address]));
    }

    #[test]
    fn what_is_not_there_makes_room_for_what_may_be() {
        let declared = ObjectName::new("a", "declared");
        let mut state = State::new("a/me", [declared.clone()]);
        let (gone, open) = (ObjectName::new("com", "example"), ObjectName::new("a", "open"));
        state.want([gone.clone(), open]);
        state.want_addresses(["::1".parse().expect("valid")]);
        state.apply(removal(ResourceType::Service, "com/example"));
        state.apply(removal(ResourceType::Service, "a/declared"));
        state.apply(removal(ResourceType::EndpointSlice, "address/::1"));
        let requests = state.forget_absent();
        let names: Vec<_> = requests.iter().map(|request| request.resource_names_unsubscribe.clone()).collect();
        assert_eq!(names, [vec!["com/example".to_owned(), "address/::1".to_owned()], vec!["com/example".to_owned()]]);
        assert_eq!((state.subscribed(), state.addresses()), (2, 0));
        assert!(state.absent().contains(&declared) && !state.absent().contains(&gone));
    }
}
