//! Policies that several services have, which is nearly all: each is held once.

use std::sync::Arc;

use weft_policy::model::{BackendPolicy, RequestPolicy, RouteRule, Service};

/// Of each kind; services with policies beyond that have their own.
const MOST: usize = 64;

#[derive(Default)]
pub(super) struct Policies {
    backends: Vec<Arc<BackendPolicy>>,
    requests: Vec<Arc<RequestPolicy>>,
}

impl Policies {
    /// Puts in the place of each policy of a service that nobody else has yet an equal one that is held already.
    pub(super) fn share(&mut self, service: &mut Service) {
        for port in &mut service.ports {
            one(&mut self.backends, &mut port.backend);
            let routed = port.routing.iter_mut().flat_map(|routing| &mut routing.rules);
            let rules = routed.chain([&mut port.direct]);
            for RouteRule { requests, .. } in rules.filter_map(Arc::get_mut) {
                one(&mut self.requests, requests);
            }
        }
    }
}

fn one<T: PartialEq>(known: &mut Vec<Arc<T>>, policy: &mut Arc<T>) {
    if let Some(same) = known.iter().find(|known| **known == *policy) {
        *policy = Arc::clone(same);
        return;
    }
    if known.len() == MOST {
        // Those that only we hold are of services that have changed or gone.
        known.retain(|known| Arc::strong_count(known) > 1);
    }
    if known.len() < MOST {
        known.push(Arc::clone(policy));
    }
}
