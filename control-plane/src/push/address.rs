//! Endpoint slices by address: a sidecar that redirects its app's calls asks what has the address that the app dialled.
//! The name is `address/10.0.0.2`, and it leads to the slices with an endpoint there, or to slice 0 of the service whose
//! virtual address it is.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use weft_proto::{ResourceType, discovery::Resource, v1};

use super::View;

const PREFIX: &str = "address/";

/// Of one view; made when the first sidecar asks, since most meshes have none that do.
#[derive(Default)]
pub(super) struct Index(OnceLock<HashMap<IpAddr, Vec<Arc<Resource>>>>);

/// The address that a subscribed name is about.
pub(super) fn of_name(name: &str) -> Option<IpAddr> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Whether one of the names is about an address.
pub(super) fn is_in(names: &BTreeSet<String>) -> bool {
    names.range(PREFIX.to_owned()..).next().is_some_and(|name| name.starts_with(PREFIX))
}

impl Index {
    /// The slices of what has an address.
    pub(super) fn at(&self, view: &View, address: IpAddr) -> &[Arc<Resource>] {
        self.0.get_or_init(|| index(view)).get(&address).map(Vec::as_slice).unwrap_or_default()
    }
}

fn index(view: &View) -> HashMap<IpAddr, Vec<Arc<Resource>>> {
    let mut found: HashMap<IpAddr, Vec<Arc<Resource>>> = HashMap::new();
    let mut put = |address: &str, slice: &Arc<Resource>| {
        let Ok(address) = address.parse() else { return };
        let slices = found.entry(address).or_default();
        // An endpoint may be in a service more than once.
        if !slices.iter().any(|known| Arc::ptr_eq(known, slice)) {
            slices.push(Arc::clone(slice));
        }
    };
    for slice in view.all(ResourceType::EndpointSlice, "") {
        for endpoint in decoded::<v1::EndpointSlice>(slice).endpoints {
            put(&endpoint.address, slice);
        }
    }
    for service in view.all(ResourceType::Service, "") {
        let service = decoded::<v1::Service>(service);
        let first = view.named(ResourceType::EndpointSlice, &format!("{}/0", service.id), "").first();
        for (address, slice) in service.virtual_ips.iter().filter_map(|address| Some((address, first?))) {
            put(address, slice);
        }
    }
    found
}

/// What we have encoded ourselves.
fn decoded<M: prost::Message + Default>(resource: &Resource) -> M {
    let bytes = resource.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default();
    M::decode(bytes).unwrap_or_default()
}
