//! Compiling again after a change. Endpoints change most, and nothing but the endpoints of their own service depends on
//! an EndpointSlice: when nothing else has changed, only those are made anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1 as discovery;
use weft_proto::ResourceType;

use super::{Compiled, Output, Registered, compile_with, endpoints, put_slices, services};
use crate::{
    jwks::KeySets,
    sessions::Secret,
    source::{Object, Problem, Resources},
};

/// Compiles, and keeps the result for the next time.
pub struct Compiler {
    always: ((ResourceType, String), Compiled),
    secret: Secret,
    last: Option<Last>,
}

struct Last {
    resources: Arc<Resources>,
    registered: Arc<Vec<Arc<Registered>>>,
    sets: Arc<KeySets>,
    output: Output,
    problems: Vec<Problem>,
}

impl Compiler {
    /// With one resource that is in every output, and what the keys of sessions are made from.
    #[must_use]
    pub const fn new(always: ((ResourceType, String), Compiled), secret: Secret) -> Self {
        Self { always, secret, last: None }
    }

    /// Replaces the content of the resource that is in every output; false when it is the same.
    pub fn set_always(&mut self, content: Compiled) -> bool {
        let changed = self.always.1 != content;
        if changed {
            if let Some(last) = &mut self.last {
                last.output.insert(self.always.0.clone(), content.clone());
            }
            self.always.1 = content;
        }
        changed
    }

    /// Whether these are what was compiled last.
    #[must_use]
    pub fn holds(
        &self,
        resources: &Arc<Resources>,
        registered: &Arc<Vec<Arc<Registered>>>,
        sets: &Arc<KeySets>,
    ) -> bool {
        let same = |last: &Last| Arc::ptr_eq(&last.resources, resources) && last.has(registered, sets);
        self.last.as_ref().is_some_and(same)
    }

    /// What [`compile`] makes of these, and the resource that is always there.
    pub fn compile(
        &mut self,
        resources: &Arc<Resources>,
        registered: &Arc<Vec<Arc<Registered>>>,
        sets: &Arc<KeySets>,
    ) -> (&Output, &[Problem]) {
        let last = match self.last.take() {
            Some(last) if last.has(registered, sets) && only_slices(&last.resources, resources) => {
                last.with_slices(resources)
            }
            _ => {
                let (mut output, problems) = compile_with(resources, registered, sets, &self.secret);
                output.insert(self.always.0.clone(), self.always.1.clone());
                let (resources, registered, sets) = (Arc::clone(resources), Arc::clone(registered), Arc::clone(sets));
                Last { resources, registered, sets, output, problems }
            }
        };
        let last = self.last.insert(last);
        (&last.output, &last.problems)
    }
}

impl Last {
    fn has(&self, registered: &Arc<Vec<Arc<Registered>>>, sets: &Arc<KeySets>) -> bool {
        Arc::ptr_eq(&self.registered, registered) && Arc::ptr_eq(&self.sets, sets)
    }

    /// The same with the EndpointSlices of these resources.
    fn with_slices(mut self, resources: &Arc<Resources>) -> Self {
        let objects = endpoints::by_service(resources);
        let labelled = services::Labelled::new();
        for id in changed(&self.resources.endpoint_slices, &resources.endpoint_slices) {
            let Some(service) = resources.services.get(&id) else { continue };
            let view = services::explicit(service, &labelled);
            if view.selects() {
                continue;
            }
            // Nothing else begins like its slices: a name has no slash.
            let first = (ResourceType::EndpointSlice, format!("{id}/"));
            let names = self.output.range(first.clone()..).map(|(key, _)| key);
            let old: Vec<_> =
                names.take_while(|(kind, name)| *kind == first.0 && name.starts_with(&first.1)).cloned().collect();
            old.iter().for_each(|key| _ = self.output.remove(key));
            put_slices(&mut self.output, &view, &objects, &BTreeMap::new());
        }
        self.resources = Arc::clone(resources);
        self
    }
}

/// Whether at most EndpointSlices differ (and what was left out).
pub fn only_slices(old: &Resources, new: &Resources) -> bool {
    // By name, so that a kind that comes to be is not forgotten here.
    let Resources {
        trust_domain,
        namespaces,
        services,
        endpoint_slices: _,
        routes,
        grpc_routes,
        reference_grants,
        workloads,
        traffic_policies,
        authorization_policies,
        peer_authentications,
        rate_limit_policies,
        fault_injections,
        telemetry_policies,
        request_authentications,
        mesh_configs,
        problems: _,
        left_out: _,
    } = old;
    *trust_domain == new.trust_domain
        && same(namespaces, &new.namespaces)
        && same(services, &new.services)
        && same(routes, &new.routes)
        && same(grpc_routes, &new.grpc_routes)
        && same(reference_grants, &new.reference_grants)
        && same(workloads, &new.workloads)
        && same(traffic_policies, &new.traffic_policies)
        && same(authorization_policies, &new.authorization_policies)
        && same(peer_authentications, &new.peer_authentications)
        && same(rate_limit_policies, &new.rate_limit_policies)
        && same(fault_injections, &new.fault_injections)
        && same(telemetry_policies, &new.telemetry_policies)
        && same(request_authentications, &new.request_authentications)
        && same(mesh_configs, &new.mesh_configs)
}

/// Objects that did not change are shared.
fn same<T>(old: &BTreeMap<String, Arc<T>>, new: &BTreeMap<String, Arc<T>>) -> bool {
    old.len() == new.len() && old.values().zip(new.values()).all(|(old, new)| Arc::ptr_eq(old, new))
}

type Slices = BTreeMap<String, Arc<Object<discovery::EndpointSlice>>>;

/// Ids of the services of slices that are new, other or gone.
fn changed(old: &Slices, new: &Slices) -> BTreeSet<String> {
    let without = |all: &Slices, other: &Slices| {
        let differs =
            |(name, slice): &(&String, &Arc<_>)| !other.get(*name).is_some_and(|same| Arc::ptr_eq(same, slice));
        all.iter()
            .filter(differs)
            .filter_map(|(_, slice)| Some(format!("{}/{}", slice.namespace, endpoints::service_of(slice)?)))
            .collect::<Vec<_>>()
    };
    without(old, new).into_iter().chain(without(new, old)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;

    const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: picks}
spec: {ports: [{port: 80}], selector: {app: w}}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: w, labels: {app: w}}
spec: {address: 127.0.0.9, ports: [{port: 80}]}
---
";

    fn slice(service: &str, count: usize) -> String {
        let list: Vec<_> = (0..count).map(|k| format!("{{addresses: [127.0.{}.{}]}}", k / 250, k % 250 + 1)).collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nports: [{{port: 80}}]\n\
             metadata: {{name: s, labels: {{kubernetes.io/service-name: {service}}}}}\nendpoints: [{}]\n",
            list.join(", ")
        )
    }

    fn load(text: &str) -> Resources {
        let (resources, problems) = Resources::from_text("f.yaml", text);
        assert_eq!(problems, []);
        resources
    }

    #[test]
    fn compiling_again_makes_what_compiling_anew_makes() {
        let key = (ResourceType::TrustBundle, "weft.local".to_owned());
        let always = Compiled::from(Vec::new());
        let mut compiler = Compiler::new((key.clone(), always), Secret::default());
        let (registered, sets) = (Arc::default(), Arc::default());
        let mesh = load(MESH);
        let steps = [
            slice("a", 1),
            slice("a", 2),
            // More slices, fewer, another service's, and one that has none of its own.
            slice("a", 250),
            slice("a", 3),
            slice("b", 3),
            slice("picks", 3),
            slice("none", 3),
            String::new(),
        ];
        for (number, step) in steps.iter().enumerate() {
            let resources = Arc::new(Resources { endpoint_slices: load(step).endpoint_slices, ..mesh.clone() });
            assert!(compiler.last.as_ref().is_none_or(|last| only_slices(&last.resources, &resources)), "{number}");
            let (output, problems) = compiler.compile(&resources, &registered, &sets);
            let (mut anew, found) = compile(&resources, &registered);
            anew.insert(key.clone(), output[&key].clone());
            assert_eq!((output, problems), (&anew, found.as_slice()), "{number}");
        }
    }

    #[test]
    fn what_is_not_an_endpoint_compiles_everything() {
        let (old, mut new) = (load(MESH), load(MESH));
        assert!(only_slices(&old, &old.clone()));
        assert!(!only_slices(&old, &new), "objects that were read again may be others");
        new = old.clone();
        new.services.remove("default/a");
        assert!(!only_slices(&old, &new));
    }

    /// Objects that come, change and go; each is read once, so that it is shared for as long as it stays.
    fn pool() -> Vec<Vec<Resources>> {
        let policy = |kind: &str, name: &str, spec: &str| {
            format!("apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
        };
        let to_a = "targetRefs: [{kind: Service, name: a}]";
        let traffic = |name, connections: u32| {
            policy("TrafficPolicy", name, &format!("{to_a}, limits: {{connections: {connections}}}"))
        };
        let route = |timeout: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: \
                 [{{kind: Service, group: '', name: a}}], rules: [{{name: x, timeouts: {{request: {timeout}}}}}]}}\n"
            )
        };
        let pool = [
            vec![traffic("p", 1), traffic("p", 2)],
            vec![traffic("q", 3)],
            vec![policy("TrafficPolicy", "whole", "timeouts: {request: 1s, connect: 1s}")],
            vec![policy("FaultInjection", "f", &format!("{to_a}, abort: {{reset: true}}"))],
            vec![policy("RateLimitPolicy", "l", "targetRefs: [{kind: Service, name: picks}], limits: [{requests: 1}]")],
            vec![
                policy("MeshConfig", "default", "traffic: {retries: {attempts: 5}}"),
                policy("MeshConfig", "default", "traffic: {connection: {maxStreams: 7}}"),
            ],
            vec![route("1s"), route("2s")],
            vec![slice("a", 1), slice("a", 2)],
            vec![slice("b", 3)],
        ];
        pool.iter().map(|variants| variants.iter().map(|text| load(text)).collect()).collect()
    }

    fn with(mut all: Resources, one: &Resources) -> Resources {
        all.traffic_policies.extend(one.traffic_policies.clone());
        all.fault_injections.extend(one.fault_injections.clone());
        all.rate_limit_policies.extend(one.rate_limit_policies.clone());
        all.mesh_configs.extend(one.mesh_configs.clone());
        all.routes.extend(one.routes.clone());
        all.endpoint_slices.extend(one.endpoint_slices.clone());
        all
    }

    proptest::proptest! {
        #[test]
        fn whatever_changes_compiling_again_makes_what_compiling_anew_makes(
            steps in proptest::collection::vec(proptest::collection::vec(0usize..3, 9), 1..8),
        ) {
            let (mesh, pool, sets) = (load(MESH), pool(), Arc::default());
            let key = (ResourceType::TrustBundle, "weft.local".to_owned());
            let mut compiler = Compiler::new((key.clone(), Compiled::from(Vec::new())), Secret::default());
            let registration = weft_proto::v1::Registration {
                name: "w".into(),
                namespace: "default".into(),
                labels: [("app".into(), "w".into())].into(),
                address: "127.0.0.9".into(),
                ..Default::default()
            };
            let registered = Arc::new(vec![Arc::new(Registered { registration, spiffe_id: String::new() })]);
            for step in steps {
                // 0 is not there; the others are its variants.
                let chosen = step.iter().zip(&pool).filter_map(|(choice, of)| of.get(choice.checked_sub(1)?));
                let resources = Arc::new(chosen.fold(mesh.clone(), with));
                let (output, problems) = compiler.compile(&resources, &registered, &sets);
                let (mut anew, found) = compile(&resources, &registered);
                anew.insert(key.clone(), output[&key].clone());
                proptest::prop_assert_eq!((output, problems), (&anew, found.as_slice()));
            }
        }
    }
}
