//! `weft inject` and `weft uninject`: filters from manifests, or compose files, to the same with and without sidecars. Nothing is printed to standard output unless
//! everything is right.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;
use weft_control_plane::inject::{
    Options,
    text::{Task, filter},
};

use crate::{
    objects,
    problems::{Severity, render},
};

/// Flags of `weft inject`.
#[derive(Args, Clone, Debug)]
pub struct InjectArgs {
    /// File, directory of .yaml, .yml and .json files, or - for standard input; may be repeated
    #[arg(long = "file", short, value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of the control plane
    #[arg(long, value_name = "NS", default_value = "weft-system")]
    control_plane_namespace: String,
    /// Discovery address of the control plane [default: weft-control-plane.<its namespace>.svc:15012; in a compose file
    /// weft-control-plane:15012]
    #[arg(long, value_name = "HOST:PORT")]
    xds: Option<String>,
    /// Image of the sidecar [default: weft:<this version>]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Image of the init container that redirects traffic [default: weft-redirect:<this version>]
    #[arg(long, value_name = "IMAGE")]
    redirect_image: Option<String>,
    /// Do not redirect traffic: apps call services at the ports of the annotation weft.dev/upstreams
    #[arg(long)]
    no_redirect: bool,
    /// Log filter of the sidecars
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Say nothing on standard error about what was done
    #[arg(long, short)]
    quiet: bool,
}

/// Flags of `weft uninject`.
#[derive(Args, Clone, Debug)]
pub struct UninjectArgs {
    /// File, directory of .yaml, .yml and .json files, or - for standard input; may be repeated
    #[arg(long = "file", short, value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    /// Say nothing on standard error about what was done
    #[arg(long, short)]
    quiet: bool,
}

/// Prints the manifests with sidecars.
pub fn inject(args: &InjectArgs) -> anyhow::Result<ExitCode> {
    let mut options = Options::of(&args.control_plane_namespace);
    let set = |place: &mut String, flag: &Option<String>| {
        if let Some(value) = flag {
            place.clone_from(value);
        }
    };
    set(&mut options.xds, &args.xds);
    set(&mut options.compose_xds, &args.xds);
    set(&mut options.image, &args.image);
    set(&mut options.redirect_image, &args.redirect_image);
    options.log.clone_from(&args.log);
    options.redirect = !args.no_redirect;
    run(&args.files, Task::Inject(&options), args.quiet)
}

/// Prints the manifests without sidecars.
pub fn uninject(args: &UninjectArgs) -> anyhow::Result<ExitCode> {
    run(&args.files, Task::Uninject, args.quiet)
}

fn run(files: &[PathBuf], task: Task<'_>, quiet: bool) -> anyhow::Result<ExitCode> {
    let sources = objects::read(files)?;
    let (mut out, mut pods, mut failed) = (String::new(), Vec::new(), 0);
    for source in &sources {
        match filter(&source.file, &source.text, task) {
            Ok(filtered) => {
                if !out.is_empty() {
                    separate(&mut out, &filtered.text);
                }
                out.push_str(&filtered.text);
                pods.extend(filtered.pods);
            }
            Err(problem) => {
                failed += 1;
                anstream::eprint!("{}", render(&problem, Severity::Error, Some(&source.text)));
            }
        }
    }
    if failed > 0 {
        anyhow::bail!("{failed} of {} files cannot be changed; nothing was printed", sources.len());
    }
    std::io::stdout().lock().write_all(out.as_bytes())?;
    if !quiet {
        for (pod, done) in &pods {
            eprintln!("{pod} {done}");
        }
        if pods.is_empty() {
            eprintln!("no pods in {} files: everything was passed on as it is", sources.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Texts of several files are documents of one.
fn separate(out: &mut String, next: &str) {
    if !out.ends_with('\n') {
        out.push('\n');
    }
    if !next.starts_with("---") {
        out.push_str("---\n");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::Value;

    use super::*;
    use crate::args::{Cli, Command};

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {weft.dev/upstreams: catalog=9001}}\n\
        spec:\n  containers:\n  - name: app\n    image: app\n    ports: [{name: web, containerPort: 8080}, {containerPort: 9}]\n    \
        livenessProbe: {httpGet: {port: web, path: /x}}\n    readinessProbe: {grpc: {port: 9}}\n    \
        startupProbe: {tcpSocket: {port: 8080}, timeoutSeconds: 3}\n";

    fn containers() -> Vec<Value> {
        let options = Options::of("weft-system");
        let text = filter("p.yaml", POD, Task::Inject(&options)).unwrap().text;
        let pod = &objects::parse(&objects::Source { file: "p.yaml".into(), text }).unwrap()[0];
        pod["spec"]["initContainers"].as_array().unwrap().clone()
    }

    /// The command line as Kubernetes makes it: with the variables replaced.
    fn command_line(words: &Value) -> Vec<String> {
        let words = words.as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let variables =
            [("POD_IP", "10.1.2.3"), ("POD_NAMESPACE", "shop"), ("POD_NAME", "web-1"), ("SERVICE_ACCOUNT", "web")];
        let replaced = words.map(|word| {
            variables
                .iter()
                .fold(word.to_owned(), |word, (name, value)| word.replace(&format!("$(WEFT_{name})"), value))
        });
        std::iter::once("weft".to_owned()).chain(replaced).collect()
    }

    #[test]
    fn the_sidecar_understands_the_arguments_that_it_is_given_in_a_pod() {
        let sidecar = containers().into_iter().find(|container| container["name"] == "weft-sidecar").unwrap();
        let words = command_line(&sidecar["args"]);
        let Command::Sidecar(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not a sidecar");
        };
        assert_eq!((args.id().as_str(), args.account()), ("shop/web-1", "web"));
        assert_eq!((args.mesh_listen.port(), args.advertised()), (15008, "10.1.2.3".parse().unwrap()));
        assert_eq!((args.ports.len(), args.ports[0].port, args.ports[0].name.as_str()), (2, 8080, "web"));
        let names: Vec<&str> = args.pod.app_probes.iter().map(|probe| probe.name.as_str()).collect();
        assert_eq!(names, ["app/livez", "app/readyz", "app/startupz"]);
        assert_eq!(args.upstreams[0].local, 9001);

        let hook = &sidecar["lifecycle"]["preStop"]["exec"]["command"];
        let words = command_line(hook);
        assert!(matches!(Cli::try_parse_from(&words[1..]).unwrap().command, Command::Drain(_)), "{words:?}");
    }

    #[test]
    fn the_init_container_redirects_to_where_the_sidecar_listens() {
        let redirect = containers().into_iter().find(|container| container["name"] == "weft-redirect").unwrap();
        let words = command_line(&redirect["args"]);
        assert!(matches!(Cli::try_parse_from(&words).unwrap().command, Command::Redirect(_)), "{words:?}");
        for word in ["--outbound-port=15001", "--dns-port=15053", "--inbound-port=8080=15100", "--inbound-port=9=15101"]
        {
            assert!(words.iter().any(|known| known == word), "{words:?}");
        }
    }

    #[test]
    fn the_services_of_a_compose_file_understand_what_they_are_given() {
        let options = Options::of("weft-system");
        let text = include_str!("../../control-plane/tests/inject/compose.yaml");
        let text = filter("compose.yaml", text, Task::Inject(&options)).unwrap().text;
        let file = &objects::parse(&objects::Source { file: "compose.yaml".into(), text }).unwrap()[0];
        let parsed = |service: &str| {
            let line = command_line(&file["services"][service]["command"]);
            Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}")).command
        };
        let Command::Sidecar(web) = parsed("web-weft") else { panic!("not a sidecar") };
        assert_eq!(
            (web.id().as_str(), web.account(), web.xds_address()),
            ("default/web", "web", "weft-control-plane:15012")
        );
        assert_eq!(web.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 443]);
        assert_eq!(web.redirect_ports.unwrap().rest, Some(15099));
        let Command::Sidecar(payments) = parsed("payments-weft") else { panic!("not a sidecar") };
        assert!(!payments.transparent && payments.state_dir.is_some());
        for network in ["web-weft-net", "catalog-weft-net", "payments-weft-net"] {
            assert!(matches!(parsed(network), Command::Redirect(_)), "{network}");
        }
        for service in ["web-weft", "payments-weft-net"] {
            let test = &file["services"][service]["healthcheck"]["test"];
            assert_eq!((&test[0], &test[1]), (&"CMD".into(), &"/usr/local/bin/weft".into()));
        }
        let health = command_line(&file["services"]["web-weft"]["healthcheck"]["test"]);
        assert!(matches!(Cli::try_parse_from(&health[2..]).unwrap().command, Command::Ready(_)), "{health:?}");
    }

    #[test]
    fn units_of_systemd_start_what_there_is() {
        let units = [
            include_str!("../../deploy/systemd/weft-control-plane.service"),
            include_str!("../../deploy/systemd/weft-sidecar@.service"),
        ];
        for unit in units {
            let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/weft ")).unwrap();
            let flags =
                "--port=web:8080/http --mesh-listen=0.0.0.0:15008 --advertise=192.0.2.10 --upstream=catalog=9001";
            assert!(unit.contains(flags) || !line.contains("$WEFT_FLAGS"), "they are its example");
            let line = line.replace("$WEFT_FLAGS", flags).replace("%i", "web").replace("%m", "0123456789abcdef");
            let words = std::iter::once("weft").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn several_files_become_documents_of_one() {
        let mut out = "a: 1".to_owned();
        separate(&mut out, "b: 2\n");
        assert_eq!(out, "a: 1\n---\n");
        let mut out = "a: 1\n".to_owned();
        separate(&mut out, "---\nb: 2\n");
        assert_eq!(out, "a: 1\n");
    }
}
