//! Each endpoint as a cluster of its own, for an app that dials the endpoint's address and not the service: the same
//! limits and circuits, but no choice and no routes. Also those that take no calls of the service: who dials an address
//! wants that one.

use std::{net::SocketAddr, sync::Arc};

use weft_policy::{balance::Balancer, model::Endpoint, outlier::Health};

use super::Builder;
use crate::snapshot::{Cluster, EndpointState, Snapshot};

impl Builder {
    /// Adds the endpoints of a service port, if anybody looks for them.
    pub(super) fn alone(&self, snapshot: &mut Snapshot, cluster: &Arc<Cluster>, all: &[Arc<Endpoint>]) {
        let Some(before) = &self.alone else { return };
        for endpoint in all {
            snapshot.inside.insert(endpoint.address);
            let Some(port) = endpoint.ports.get(cluster.target.port) else { continue };
            let address = SocketAddr::new(endpoint.address, port);
            // Of several services with the same endpoint the first counts, in whatever order they are held.
            let key = |cluster: &Cluster| (cluster.target.service.to_string(), cluster.target.port);
            if snapshot.endpoints.get(&address).is_some_and(|other| key(other) <= key(cluster)) {
                continue;
            }
            let previous = before.get(&address).filter(|previous| previous.target == cluster.target);
            snapshot.endpoints.insert(address, self.one(cluster, previous, endpoint, address));
        }
    }

    /// The cluster of one endpoint; that of before when nothing of it has changed.
    fn one(
        &self,
        cluster: &Cluster,
        previous: Option<&Arc<Cluster>>,
        endpoint: &Arc<Endpoint>,
        address: SocketAddr,
    ) -> Arc<Cluster> {
        let same = |state: &&Arc<EndpointState>| state.address == address && state.endpoint == *endpoint;
        let known = cluster.endpoints.iter().find(same);
        let known = known.or_else(|| previous.and_then(|previous| previous.endpoints.iter().find(same)));
        let state = known.cloned().unwrap_or_else(|| {
            let health = Arc::new(Health::new(&cluster.shared.ejections));
            Arc::new(EndpointState::new(endpoint, address, health))
        });
        let unchanged = |previous: &&Arc<Cluster>| {
            previous.policy == cluster.policy
                && previous.protocol == cluster.protocol
                && Arc::ptr_eq(&previous.shared, &cluster.shared)
                && previous.routes.iter().map(|route| &route.rule).eq(cluster.routes.iter().map(|route| &route.rule))
                && previous.endpoints.first().is_some_and(|known| Arc::ptr_eq(known, &state))
        };
        if let Some(previous) = previous.filter(unchanged) {
            return Arc::clone(previous);
        }
        let endpoints: Arc<[_]> = Arc::from([state]);
        let settings = &cluster.policy.load_balancing;
        Arc::new(Cluster {
            target: cluster.target.clone(),
            protocol: cluster.protocol,
            balancer: Balancer::new(settings, &self.own, &endpoints, self.clock.now(), None),
            endpoints,
            policy: Arc::clone(&cluster.policy),
            routes: cluster.routes.clone(),
            shared: Arc::clone(&cluster.shared),
        })
    }
}
