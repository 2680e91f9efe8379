//! Services behind `weft run --transparent` that are restarted instance by instance, while callers who know nothing of the
//! mesh notice nothing.

use rustix::process::Signal;

use super::{
    lan::{HUB, lacks},
    mesh::Mesh,
    script,
};
use crate::{
    net::eventually,
    process::{Process, signal},
};

/// One instance of a service, which can be restarted.
struct Instance {
    host: &'static str,
    service: &'static str,
    port: String,
    app: Vec<String>,
    process: Process,
}

impl Instance {
    fn new(mesh: &Mesh, host: &'static str, service: &'static str, port: u16, app: &[&str]) -> Self {
        let (port, app) = (format!("main:{port}/http"), app.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let process = Self::begin(mesh, host, service, &port, &app);
        Self { host, service, port, app, process }
    }

    fn begin(mesh: &Mesh, host: &str, service: &str, port: &str, app: &[String]) -> Process {
        let app: Vec<&str> = app.iter().map(String::as_str).collect();
        let flags = ["--transparent", "--lame-duck", "1", "--port", port];
        let log = mesh.dir.join(format!("{service}-{host}.log"));
        Process::start(&mut mesh.run_command(host, service, &flags, &app), &log)
    }

    fn restart(&mut self, mesh: &Mesh) {
        signal(self.process.id(), Signal::TERM);
        let status = self.process.wait();
        assert_eq!(status.code(), Some(128 + 15), "{}", self.process.output());
        assert!(self.process.output().contains("no callers are left"), "{}", self.process.output());
        self.process = Self::begin(mesh, self.host, self.service, &self.port, &self.app);
        wait_for_two(mesh, self.service);
    }
}

/// Waits until the control plane knows two instances that take requests, and no other.
fn wait_for_two(mesh: &Mesh, service: &str) {
    eventually(&format!("two instances of {service}"), || {
        let (_, text) = mesh.lan.run(HUB, &["curl", "-sS", "http://127.0.0.1:15014/weft/v1/proxies"]);
        let proxies: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let of = |item: &&serde_json::Value| {
            item["name"].as_str().and_then(|name| name.rsplit_once('-')).is_some_and(|(name, _)| name == service)
        };
        let takes = |item: &serde_json::Value| item["healthy"] == true && item["draining"] != true;
        let known: Vec<bool> = proxies["items"].as_array().ok_or("no items")?.iter().filter(of).map(takes).collect();
        if known == [true, true] { Ok(()) } else { Err(format!("{known:?}")) }
    });
}

#[test]
fn no_call_fails_while_every_instance_of_a_transparent_mesh_is_restarted_again_and_again() {
    let test = "no_call_fails_while_every_instance_of_a_transparent_mesh_is_restarted_again_and_again";
    if lacks(test, &[("python3", "--version"), ("curl", "--version")]) {
        return;
    }
    let rounds: usize = std::env::var("WEFT_RESTARTS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports:\n  - \
             {{name: main, port: 80, targetPort: main, appProtocol: http}}\n"
        )
    };
    let mesh = Mesh::start("rolling", &[&service("catalog"), &service("storefront")]);
    let catalog = [env!("CARGO_BIN_EXE_weft"), "demo-service", "catalog", "--listen", "0.0.0.0:9000"];
    let mut instances: Vec<_> =
        ["a", "b"].map(|host| Instance::new(&mesh, host, "catalog", 9000, &catalog)).into_iter().collect();
    wait_for_two(&mesh, "catalog");
    let calls_on = script("calls_on.py");
    let storefront = ["python3", calls_on.as_str(), "0.0.0.0:8000", "http://catalog/items"];
    instances.extend(["a", "b"].map(|host| Instance::new(&mesh, host, "storefront", 8000, &storefront)));
    wait_for_two(&mesh, "storefront");
    let stop = mesh.dir.join("stop");
    let shops = ["python3", &script("shops.py"), "http://storefront/", &stop.to_string_lossy(), "3"];
    let mut shopper = mesh.app("c", "shopper", &[], &shops);
    eventually("a shopper", || {
        if shopper.process.output().contains("ready") { Ok(()) } else { Err("not yet".to_owned()) }
    });
    for _ in 0..rounds {
        instances.iter_mut().for_each(|instance| instance.restart(&mesh));
    }
    std::fs::write(&stop, "").expect("writable");
    shopper.process.wait();
    let output = shopper.process.output();
    let told = output.lines().find(|line| line.starts_with("served ")).unwrap_or_else(|| panic!("{output}"));
    println!("{told} during {} restarts", rounds * instances.len());
    let mut words = told.split(' ');
    let mut number = || words.by_ref().find_map(|word| word.parse::<usize>().ok()).unwrap_or_default();
    let (served, failed) = (number(), number());
    assert_eq!(failed, 0, "{told}");
    assert!(served > 20 * rounds, "{told}: that is no load");
}
