//! What workloads are told to record.

use super::*;

fn telemetry(policies: &str) -> v1::Telemetry {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                   spec: {selector: {app: web}, ports: [{port: 80}]}\n";
    let resources = load(&format!("{service}{policies}"));
    let web = registered("web-1", &[("app", "web"), ("track", "canary")], &[(8080, "http", v1::Protocol::Http)]);
    let (output, problems) = compile(&resources, &[web]);
    assert_eq!(texts(&problems), Vec::<String>::new());
    get::<v1::WorkloadConfig>(&output, ResourceType::WorkloadConfig, "default/web-1").telemetry.expect("always told")
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: {name}}}\nspec:\n  {}\n",
        rest.replace('\n', "\n  ")
    )
}

#[test]
fn without_a_policy_one_in_a_hundred_traces_is_recorded_and_failures_are_logged() {
    let found = telemetry("");
    assert_eq!(found.sampled_per_million, 10_000);
    assert_eq!(found.otlp_endpoint, "http://127.0.0.1:4317");
    assert_eq!(found.access_log(), v1::AccessLogMode::Errors);
    assert_eq!(found.access_log_format(), v1::AccessLogFormat::Json);
}

#[test]
fn the_most_specific_policy_wins_field_by_field() {
    let mesh = "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\n\
                spec: {tracing: {samplingPercent: 2, endpoint: \"http://10.0.0.1:4317\"}, accessLog: {format: Envoy}}\n";
    let namespace = policy("all", "tracing: {samplingPercent: 3, headers: [X-Tenant]}\naccessLog: {mode: All}");
    let service = policy("web", "targetRefs: [{kind: Service, name: web}]\ntracing: {samplingPercent: 0.5}");
    let selected = policy("canary", "selector: {matchLabels: {track: canary}}\naccessLog: {mode: Sampled}");
    let other = policy("other", "selector: {matchLabels: {track: stable}}\ntracing: {samplingPercent: 100}");

    let found = telemetry(mesh);
    assert_eq!((found.sampled_per_million, found.otlp_endpoint.as_str()), (20_000, "http://10.0.0.1:4317"));
    let found = telemetry(&format!("{mesh}{namespace}"));
    assert_eq!((found.sampled_per_million, found.access_log()), (30_000, v1::AccessLogMode::All));
    let found = telemetry(&format!("{mesh}{namespace}{service}{selected}{other}"));
    assert_eq!(found.sampled_per_million, 5_000, "the service's");
    assert_eq!(found.headers, ["x-tenant"], "the namespace's, in lower case");
    assert_eq!(found.access_log(), v1::AccessLogMode::Sampled, "the selected workloads'");
    assert_eq!(found.access_log_format(), v1::AccessLogFormat::Envoy, "the mesh's");
    assert_eq!(found.otlp_endpoint, "http://10.0.0.1:4317");
}

#[test]
fn what_a_policy_gets_wrong_is_told_with_its_path() {
    for (spec, expected) in [
        ("tracing: {endpoint: \"https://x:1\"}", "spec.tracing.endpoint: \"https://x:1\" is not http://host:port"),
        ("tracing: {endpoint: \"\"}", "spec.tracing.endpoint: \"\" is not http://host:port"),
        ("tracing: {samplingPercent: 101}", "spec.tracing.samplingPercent"),
        (&format!("tracing: {{headers: [{}]}}", vec!["x"; 17].join(", ")), "spec.tracing.headers: has 17 entries"),
    ] {
        let (_, problems) = Resources::from_text("f.yaml", &policy("p", spec));
        assert!(problems.iter().any(|problem| problem.to_string().contains(expected)), "{spec}: {problems:?}");
    }
}
