//! What a workload's sidecar records: TelemetryPolicy merged field by field, the most specific first (a selector, a
//! Service, the namespace), then MeshConfig, then the defaults.

use weft_proto::v1;

use crate::{
    compile::instances::Instance,
    source::{
        Resources,
        policies::telemetry::{AccessLog, AccessLogFormat, AccessLogMode, TelemetryPolicySpec, Tracing},
    },
};

/// Share of traces that are recorded, in percent, where nobody says otherwise.
const SAMPLING: f64 = 1.0;
/// Where a collector or Jaeger listens by default (OTLP specification, OTLP/gRPC default port).
const ENDPOINT: &str = "http://127.0.0.1:4317";

/// The settings of one instance, a member of these services (`namespace/name`).
#[must_use]
pub fn settings(resources: &Resources, instance: &Instance, services: &[&str]) -> v1::Telemetry {
    let mut found: Vec<_> = resources
        .telemetry_policies
        .values()
        .filter(|policy| policy.namespace == instance.namespace)
        .filter_map(|policy| Some((rank(&policy.value.spec, instance, services)?, policy)))
        .collect();
    // Of two that are as specific the older one counts; what a file has was written at no known time.
    found.sort_by_key(|(rank, policy)| {
        let created = policy.value.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (*rank, created.is_none(), created, policy.name.clone())
    });
    let mesh = resources.mesh_configs.values().find(|config| config.name == "default").map(|config| &config.value.spec);
    let own = || found.iter().map(|(_, policy)| &policy.value.spec);
    let tracing: Vec<&Tracing> =
        own().filter_map(|spec| spec.tracing.as_ref()).chain(mesh.and_then(|mesh| mesh.tracing.as_ref())).collect();
    let log: Vec<&AccessLog> = own()
        .filter_map(|spec| spec.access_log.as_ref())
        .chain(mesh.and_then(|mesh| mesh.access_log.as_ref()))
        .collect();
    let sampling = tracing.iter().find_map(|tracing| tracing.sampling_percent).unwrap_or(SAMPLING);
    let headers = tracing.iter().find_map(|tracing| tracing.headers.as_ref());
    v1::Telemetry {
        sampled_per_million: per_million(sampling),
        otlp_endpoint: tracing
            .iter()
            .find_map(|tracing| tracing.endpoint.clone())
            .unwrap_or_else(|| ENDPOINT.to_owned()),
        headers: headers.into_iter().flatten().map(|name| name.to_ascii_lowercase()).collect(),
        access_log: mode(log.iter().find_map(|log| log.mode)).into(),
        access_log_format: format(log.iter().find_map(|log| log.format)).into(),
    }
}

/// How specific a policy is for the instance, 0 the most; `None`: it is for others.
fn rank(spec: &TelemetryPolicySpec, instance: &Instance, services: &[&str]) -> Option<u8> {
    if let Some(selector) = &spec.selector {
        let matches = selector.match_labels.iter().all(|(key, value)| instance.labels.get(key) == Some(value));
        return matches.then_some(0);
    }
    if spec.target_refs.is_empty() {
        return Some(2);
    }
    let own = |name: &str| {
        services
            .iter()
            .any(|id| id.split_once('/').is_some_and(|(of, known)| of == instance.namespace && known == name))
    };
    let targets = spec.target_refs.iter().filter_map(|target| match target.kind.as_str() {
        "Service" => own(&target.name).then_some(1),
        "Namespace" => (target.name == instance.namespace).then_some(2),
        _ => None,
    });
    targets.min()
}

/// Checked to be 0 to 100.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a million, and never negative")]
fn per_million(percent: f64) -> u32 {
    (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
}

fn mode(mode: Option<AccessLogMode>) -> v1::AccessLogMode {
    match mode {
        None | Some(AccessLogMode::Errors) => v1::AccessLogMode::Errors,
        Some(AccessLogMode::All) => v1::AccessLogMode::All,
        Some(AccessLogMode::Off) => v1::AccessLogMode::Off,
        Some(AccessLogMode::Sampled) => v1::AccessLogMode::Sampled,
    }
}

fn format(format: Option<AccessLogFormat>) -> v1::AccessLogFormat {
    match format {
        None | Some(AccessLogFormat::Json) => v1::AccessLogFormat::Json,
        Some(AccessLogFormat::Envoy) => v1::AccessLogFormat::Envoy,
        Some(AccessLogFormat::Common) => v1::AccessLogFormat::Common,
    }
}
