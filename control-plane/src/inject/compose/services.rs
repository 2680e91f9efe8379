//! The two services that are put beside one of a compose file.

use serde_json::{Map, Value, json};

use super::{CONTROL_PLANE, MOVED, NETWORK, RUN, shown, text};
use crate::inject::{
    ADMIN_PORT, DNS_PORT, HEALTH_PORT, INJECTED, MESH_PORT, OUTBOUND_PORT, PROXY_PORT, REST_PORT, USER,
    annotations::Settings,
    sidecar::{PROGRAM, redirect_flags},
};

/// Where token and state are in the sidecar.
const MOUNT: &str = "/run/weft";
const STATE: &str = "/var/lib/weft";
/// Seconds that the sidecar may take to end: its app has ended before it.
const DRAIN: u64 = 5;

/// A service that gets a sidecar.
pub struct App<'a> {
    pub name: &'a str,
    pub service: &'a Value,
    pub settings: &'a Settings,
    /// The file of its enrolment token; `None`: the development token.
    pub token: Option<&'a str>,
}

/// The volume of a sidecar that has a token of its own, which is used once.
pub fn state_volume(name: &str) -> String {
    format!("{name}-weft-state")
}

impl App<'_> {
    /// Holds the network that app and sidecar share, under the app's name, and the rules in it. It does nothing else, so
    /// that the network stays when the sidecar is started again.
    pub fn network(&self, redirected: &[(u16, u16)]) -> Value {
        let mut service = Map::new();
        let mut set = |field: &str, value: Value| service.insert(field.into(), value);
        for field in MOVED {
            if let Some(value) = self.service.get(field) {
                set(field, value.clone());
            }
        }
        if self.service.get("network_mode").is_none() {
            set("networks", self.networks());
        }
        if self.settings.redirect {
            let mut command = vec!["redirect".to_owned(), "install".into(), "--hold".into()];
            command.extend(redirect_flags(self.settings, redirected));
            set("image", self.settings.redirect_image.as_str().into());
            set("user", "0:0".into());
            set("cap_drop", json!(["ALL"]));
            set("cap_add", json!(["NET_ADMIN"]));
            set("command", json!(command));
            set("healthcheck", healthcheck(&["nft", "list", "table", "inet", "weft.sidecar"]));
        } else {
            set("image", self.settings.image.as_str().into());
            set("user", format!("{USER}:{USER}").into());
            set("cap_drop", json!(["ALL"]));
            set("command", json!(["redirect", "hold"]));
            set("healthcheck", healthcheck(&[PROGRAM, "--version"]));
        }
        self.common(&mut service);
        service.insert("labels".into(), json!({ INJECTED: env!("CARGO_PKG_VERSION"), "weft.dev/of": self.name }));
        Value::Object(service)
    }

    /// The networks of the app, in which it is found by its name.
    fn networks(&self) -> Value {
        let mut aliases = vec![self.name.to_owned()];
        for field in ["container_name", "hostname"] {
            let name = text(self.service, field).to_owned();
            if !name.is_empty() && !aliases.contains(&name) {
                aliases.push(name);
            }
        }
        let with = |network: &Value| {
            let mut network = network.as_object().cloned().unwrap_or_default();
            let mut all = network.get("aliases").and_then(Value::as_array).cloned().unwrap_or_default();
            let new: Vec<Value> = aliases.iter().map(|name| Value::from(name.as_str())).collect();
            all.extend(new.into_iter().filter(|name| !all.contains(name)).collect::<Vec<_>>());
            network.insert("aliases".into(), Value::Array(all));
            Value::Object(network)
        };
        let networks: Map<String, Value> = match self.service.get("networks") {
            Some(Value::Object(all)) if !all.is_empty() => {
                all.iter().map(|(name, of)| (name.clone(), with(of))).collect()
            }
            Some(Value::Array(all)) if !all.is_empty() => {
                all.iter().map(|name| (shown(name), with(&Value::Null))).collect()
            }
            _ => [("default".to_owned(), with(&Value::Null))].into_iter().collect(),
        };
        Value::Object(networks)
    }

    /// The sidecar.
    pub fn sidecar(&self, ports: &[&str], redirected: &[(u16, u16)], with_control_plane: bool) -> Value {
        let settings = self.settings;
        let token = if self.token.is_some() { "token" } else { "weft/dev-15012.token" };
        let mut command = vec![
            "sidecar".to_owned(),
            format!("--name={}", self.name),
            format!("--label=app={}", self.name),
            "--advertise=auto".into(),
            format!("--mesh-listen=0.0.0.0:{MESH_PORT}"),
            format!("--outbound-listen=127.0.0.1:{PROXY_PORT}"),
            format!("--admin-listen=127.0.0.1:{ADMIN_PORT}"),
            format!("--health-listen=0.0.0.0:{HEALTH_PORT}"),
            "--health-metrics".into(),
            format!("--token={MOUNT}/{token}"),
            format!("--xds={}", settings.xds),
            format!("--workers={}", settings.workers),
            "--lame-duck=0".into(),
            format!("--drain-timeout={DRAIN}"),
            format!("--log={}", settings.log),
        ];
        if settings.redirect {
            let inbound: String = redirected.iter().map(|(app, front)| format!(",{app}={front}")).collect();
            command.push("--transparent".into());
            command.push(format!("--redirect-ports=outbound={OUTBOUND_PORT},dns={DNS_PORT},rest={REST_PORT}{inbound}"));
        }
        command.extend(ports.iter().map(|port| format!("--port={port}")));
        command.extend(settings.upstreams.iter().map(|upstream| format!("--upstream={upstream}")));
        let mut depends =
            json!({ (format!("{}{NETWORK}", self.name)): { "condition": "service_healthy", "restart": true } });
        if with_control_plane {
            depends[CONTROL_PLANE] = json!({ "condition": "service_started" });
        }
        let mut service = Map::new();
        let mut volumes = vec![match self.token {
            Some(file) => format!("{file}:{MOUNT}/token:ro"),
            None => format!("{RUN}:{MOUNT}:ro"),
        }];
        if self.token.is_some() {
            command.push(format!("--state-dir={STATE}"));
            volumes.push(format!("{}:{STATE}", state_volume(self.name)));
        }
        let fields = [
            ("image", settings.image.as_str().into()),
            ("user", format!("{USER}:{USER}").into()),
            ("command", json!(command)),
            ("network_mode", format!("service:{}{NETWORK}", self.name).into()),
            ("depends_on", depends),
            ("volumes", json!(volumes)),
            ("cap_drop", json!(["ALL"])),
            ("healthcheck", healthcheck(&[PROGRAM, "ready", &format!("--admin=127.0.0.1:{ADMIN_PORT}")])),
        ];
        service.extend(fields.into_iter().map(|(field, value)| (field.to_owned(), value)));
        if let Some(limit) = settings.memory_limit.as_deref().and_then(bytes) {
            service.insert("mem_limit".into(), limit.into());
        }
        if let Some(limit) = settings.cpu_limit.as_deref().and_then(cpus) {
            service.insert("cpus".into(), limit.into());
        }
        self.common(&mut service);
        Value::Object(service)
    }

    /// What both have of the app: when they are there, and that they come back when the app does.
    fn common(&self, service: &mut Map<String, Value>) {
        let restart = match text(self.service, "restart") {
            policy @ ("always" | "unless-stopped") => policy,
            _ => "on-failure",
        };
        service.insert("restart".into(), restart.into());
        service.insert("read_only".into(), true.into());
        service.insert("security_opt".into(), json!(["no-new-privileges:true"]));
        for field in ["profiles", "platform"] {
            if let Some(value) = self.service.get(field) {
                service.insert(field.into(), value.clone());
            }
        }
    }
}

/// Asked often at first, so that the app does not wait for the next time.
fn healthcheck(test: &[&str]) -> Value {
    let test: Vec<&str> = std::iter::once("CMD").chain(test.iter().copied()).collect();
    json!({ "test": test, "interval": "10s", "timeout": "5s", "start_period": "2m", "start_interval": "500ms" })
}

/// A quantity of Kubernetes, such as `64Mi`, in bytes as compose has them.
pub fn bytes(quantity: &str) -> Option<String> {
    let split = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
    let (digits, unit) = quantity.split_at(split);
    let (base, power): (u64, u32) = match unit {
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1000, 2),
        "G" => (1000, 3),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        _ => return None,
    };
    Some(format!("{}b", digits.parse::<u64>().ok()?.checked_mul(base.pow(power))?))
}

/// `100m` or `0.5` as a number of processors.
fn cpus(quantity: &str) -> Option<f64> {
    match quantity.strip_suffix('m') {
        Some(millis) => millis.parse::<f64>().ok().map(|millis| millis / 1000.0),
        None => quantity.parse().ok(),
    }
}
