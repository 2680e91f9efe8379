//! What is put into a pod: the sidecar, the init container that redirects, and the volume.

use serde_json::{Value, json};

use super::{
    ADMIN_PORT, DNS_PORT, HEALTH_PORT, MESH_PORT, OUTBOUND_PORT, PROXY_PORT, REDIRECT, REST_PORT, ROOTS, SIDECAR, USER,
    VOLUME, annotations::Settings,
};

/// Where the volume is mounted.
const MOUNT: &str = "/var/run/weft";
/// The command in both images.
pub const PROGRAM: &str = "/usr/local/bin/weft";
/// Kubernetes waits this long for a pod that does not say otherwise, in seconds.
const GRACE: u64 = 30;
/// What is left of it for the end itself.
const RESERVE: u64 = 5;

/// The sidecar: a native one, which starts before the app, ends after it, and does not hold a Job.
pub fn container(
    settings: &Settings,
    ports: &[&str],
    redirected: &[(u16, u16)],
    probes: &[String],
    grace: Option<u64>,
) -> Value {
    let drain = grace.unwrap_or(GRACE).saturating_sub(RESERVE).max(1);
    let mut args = vec![
        "sidecar".to_owned(),
        "--name=$(WEFT_POD_NAME)".into(),
        "--namespace=$(WEFT_POD_NAMESPACE)".into(),
        "--service-account=$(WEFT_SERVICE_ACCOUNT)".into(),
        "--advertise=$(WEFT_POD_IP)".into(),
        format!("--mesh-listen=0.0.0.0:{MESH_PORT}"),
        format!("--outbound-listen=127.0.0.1:{PROXY_PORT}"),
        format!("--admin-listen=127.0.0.1:{ADMIN_PORT}"),
        format!("--health-listen=0.0.0.0:{HEALTH_PORT}"),
        format!("--label-file={MOUNT}/labels"),
        format!("--token={MOUNT}/token"),
        format!("--roots={MOUNT}/roots.pem"),
        format!("--xds={}", settings.xds),
        format!("--workers={}", settings.workers),
        format!("--drain-timeout={drain}"),
        format!("--log={}", settings.log),
    ];
    if settings.redirect {
        let inbound: String = redirected.iter().map(|(app, front)| format!(",{app}={front}")).collect();
        args.push("--transparent".into());
        args.push(format!("--redirect-ports=outbound={OUTBOUND_PORT},dns={DNS_PORT},rest={REST_PORT}{inbound}"));
    }
    args.extend(ports.iter().map(|port| format!("--port={port}")));
    args.extend(settings.upstreams.iter().map(|upstream| format!("--upstream={upstream}")));
    args.extend(probes.iter().map(|probe| format!("--app-probe={}", escaped(probe))));
    let mut limits = json!({});
    for (name, limit) in [("cpu", &settings.cpu_limit), ("memory", &settings.memory_limit)] {
        if let Some(limit) = limit {
            limits[name] = limit.as_str().into();
        }
    }
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let ready = json!({ "path": "/readyz", "port": HEALTH_PORT });
    json!({
        "name": SIDECAR,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PROGRAM],
        "args": args,
        "env": [
            field("WEFT_POD_NAME", "metadata.name"),
            field("WEFT_POD_NAMESPACE", "metadata.namespace"),
            field("WEFT_POD_IP", "status.podIP"),
            field("WEFT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ],
        "ports": [
            { "name": "weft-mesh", "containerPort": MESH_PORT },
            { "name": "weft-health", "containerPort": HEALTH_PORT },
        ],
        "restartPolicy": "Always",
        "startupProbe": { "httpGet": ready, "periodSeconds": 1, "failureThreshold": 120 },
        "readinessProbe": { "httpGet": ready, "periodSeconds": 5, "failureThreshold": 2 },
        // Runs when the pod is to end, before the app has: the app is found no more, and can still call others.
        "lifecycle": {
            "preStop": { "exec": { "command": [PROGRAM, "drain", format!("--admin=127.0.0.1:{ADMIN_PORT}")] } },
        },
        "resources": {
            "requests": { "cpu": settings.cpu_request, "memory": settings.memory_request },
            "limits": limits,
        },
        "securityContext": {
            "runAsUser": USER,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [{ "name": VOLUME, "mountPath": MOUNT, "readOnly": true }],
    })
}

/// The init container: root with one capability, because a capability that is added reaches no other user.
pub fn redirect(settings: &Settings, redirected: &[(u16, u16)]) -> Value {
    let mut args = vec!["redirect".to_owned(), "install".into()];
    args.extend(redirect_flags(settings, redirected));
    json!({
        "name": REDIRECT,
        "image": settings.redirect_image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PROGRAM],
        "args": args,
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "memory": "64Mi" },
        },
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

/// Flags of `weft redirect install` for a sidecar that is known by its user, since it may not mark its traffic.
pub fn redirect_flags(settings: &Settings, redirected: &[(u16, u16)]) -> Vec<String> {
    let mut flags = vec![
        format!("--outbound-port={OUTBOUND_PORT}"),
        format!("--dns-port={DNS_PORT}"),
        format!("--mark={USER}"),
        format!("--exclude-user={USER}"),
    ];
    flags.extend(redirected.iter().map(|(app, front)| format!("--inbound-port={app}={front}")));
    flags.push(format!("--inbound-rest={REST_PORT}"));
    let excluded = [MESH_PORT, HEALTH_PORT].iter().chain(&settings.exclude_inbound_ports);
    flags.extend(excluded.map(|port| format!("--exclude-inbound-port={port}")));
    flags.extend(settings.exclude_outbound_ports.iter().map(|port| format!("--exclude-outbound-port={port}")));
    flags.extend(settings.exclude_outbound_cidrs.iter().map(|network| format!("--exclude-outbound-cidr={network}")));
    flags
}

/// The token that proves the service account to the control plane and nobody else, the mesh's roots, the pod's labels.
pub fn volume() -> Value {
    json!({
        "name": VOLUME,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "path": "token", "audience": "weft", "expirationSeconds": 3600 } },
                { "configMap": { "name": ROOTS, "items": [{ "key": "roots.pem", "path": "roots.pem" }] } },
                { "downwardAPI": { "items": [
                    { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                ] } },
            ],
        },
    })
}

/// Kubernetes replaces `$(NAME)` in arguments, and makes `$` of `$$` wherever it stands; the app's own text is not meant.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}
