//! `weft install`: prints what a cluster needs to have a mesh. The templates are those of the Helm chart, so there is one
//! truth; what they use of Helm is `{{ .Values.NAME }}` and `{{ .Release.Namespace }}` alone.

use std::{collections::BTreeMap, io::Write as _, process::ExitCode};

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};

/// The templates, in the order in which they are applied.
const TEMPLATES: [&str; 4] = [
    include_str!("../../deploy/helm/weft/templates/namespace.yaml"),
    include_str!("../../deploy/helm/weft/templates/rbac.yaml"),
    include_str!("../../deploy/helm/weft/templates/control-plane.yaml"),
    include_str!("../../deploy/helm/weft/templates/webhook.yaml"),
];

/// The definitions of Weft's own kinds, in the chart's directory for them. A test makes them anew.
const CRDS: &str = include_str!("../../deploy/helm/weft/crds/weft.dev.yaml");

/// Flags of `weft install`.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// Namespace of the control plane
    #[arg(long, short, value_name = "NS", default_value = "weft-system")]
    namespace: String,
    /// Image of control plane and sidecars
    #[arg(long, value_name = "IMAGE", default_value = concat!("weft:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// Image of the init containers that redirect traffic
    #[arg(long, value_name = "IMAGE", default_value = concat!("weft-redirect:", env!("CARGO_PKG_VERSION")))]
    redirect_image: String,
    /// Trust domain of every identity; not to be changed later
    #[arg(long, value_name = "NAME", default_value = "weft.local")]
    trust_domain: String,
    /// What becomes of new pods while the webhook does not answer: nothing, or they run without a sidecar
    #[arg(long, value_enum, default_value = "fail")]
    failure_policy: FailurePolicy,
    /// Size of the volume for the store and the certificate authority
    #[arg(long, value_name = "QUANTITY", default_value = "1Gi")]
    storage: String,
    /// Print the CustomResourceDefinitions alone, as for an update: Helm does not change those that are there
    #[arg(long)]
    crds_only: bool,
    /// Log filter of the control plane
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
}

/// Kubernetes' own words.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailurePolicy {
    Fail,
    Ignore,
}

/// Prints the manifests.
pub fn run(args: &InstallArgs) -> anyhow::Result<ExitCode> {
    let manifests = render(args)?;
    std::io::stdout().lock().write_all(manifests.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn render(args: &InstallArgs) -> anyhow::Result<String> {
    let policy = match args.failure_policy {
        FailurePolicy::Fail => "Fail",
        FailurePolicy::Ignore => "Ignore",
    };
    let values = BTreeMap::from([
        (".Release.Namespace", args.namespace.as_str()),
        (".Values.failurePolicy", policy),
        (".Values.image", &args.image),
        (".Values.log", &args.log),
        (".Values.redirectImage", &args.redirect_image),
        (".Values.storage", &args.storage),
        (".Values.trustDomain", &args.trust_domain),
    ]);
    for (name, value) in &values {
        // Values stand in the text as they are: they must not become anything but text.
        let word = |c: char| c.is_ascii_alphanumeric() || "._:/@=,-".contains(c);
        let good = value.starts_with(|c: char| c.is_ascii_alphanumeric()) && value.chars().all(word);
        let flag = name.rsplit('.').next().unwrap_or_default();
        ensure!(
            good && !value.ends_with(':'),
            "{flag} {value:?}: expected one word of letters, digits and . _ : / @ = , -"
        );
    }
    if args.crds_only {
        return Ok(CRDS.to_owned());
    }
    let documents = TEMPLATES.iter().map(|template| fill(template, &values)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(format!("{CRDS}---\n{}", documents.join("---\n")))
}

/// The template with its values.
fn fill(template: &str, values: &BTreeMap<&str, &str>) -> anyhow::Result<String> {
    let (mut out, mut rest) = (String::with_capacity(template.len()), template);
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, behind)) = after.split_once("}}") else { bail!("a template has {{{{ without }}}}") };
        let Some(value) = values.get(name.trim()) else { bail!("a template has {{{{{name}}}}}, which has no value") };
        out.push_str(before);
        out.push_str(value);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::Value;
    use weft_control_plane::inject::{
        Options,
        text::{Task, filter},
    };

    use super::*;
    use crate::{
        args::{Cli, Command},
        objects::{Source, parse},
    };

    fn args(flags: &[&str]) -> InstallArgs {
        let words = ["weft", "install"].iter().chain(flags);
        let Command::Install(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not install") };
        args
    }

    fn objects(text: &str) -> Vec<Value> {
        parse(&Source { file: "install".into(), text: text.into() }).unwrap()
    }

    fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
        objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    }

    /// What Helm makes of the chart with the values of its file.
    #[test]
    fn the_chart_with_its_own_values_is_what_the_command_prints() {
        let file = &objects(include_str!("../../deploy/helm/weft/values.yaml"))[0];
        let named: Vec<(String, &str)> = file
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (format!(".Values.{name}"), value.as_str().unwrap()))
            .collect();
        let mut values: BTreeMap<&str, &str> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        values.insert(".Release.Namespace", "weft-system");
        let chart: Vec<String> = TEMPLATES.iter().map(|template| fill(template, &values).unwrap()).collect();
        let installed = render(&args(&[])).unwrap();
        assert_eq!(installed, format!("{CRDS}---\n{}", chart.join("---\n")));
        assert_eq!(render(&args(&["--crds-only"])).unwrap(), CRDS);
        for name in values.keys() {
            let used = TEMPLATES.iter().any(|template| template.contains(&format!("{{{{ {name} }}}}")));
            assert!(used, "{name} is in values.yaml and nowhere else");
        }
        let chart = &objects(include_str!("../../deploy/helm/weft/Chart.yaml"))[0];
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    }

    /// With `WEFT_UPDATE=1` it writes them.
    #[test]
    fn the_definitions_in_the_chart_are_made_of_the_types() {
        let documents: Vec<String> = weft_control_plane::api::crds::all().iter().map(crate::yaml::text).collect();
        let head = "# Made from the types of the control plane; the test of `weft install` compares, and writes with WEFT_UPDATE=1.\n";
        let made = format!("{head}{}", documents.join("---\n"));
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft/crds/weft.dev.yaml");
        if std::env::var_os("WEFT_UPDATE").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap() == made,
            "run this test with WEFT_UPDATE=1 and look at the change"
        );
        assert_eq!(objects(&made), weft_control_plane::api::crds::all());
    }

    #[test]
    fn the_roles_allow_what_the_control_plane_does_and_nothing_more() {
        let all = objects(&render(&args(&[])).unwrap());
        let mut allowed = std::collections::BTreeSet::new();
        let words = |list: &Value| {
            list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for rule in ["ClusterRole", "Role"].iter().flat_map(|kind| of_kind(&all, kind)["rules"].as_array().unwrap()) {
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    allowed
                        .extend(words(&rule["verbs"]).into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
                }
            }
        }
        let needed = weft_control_plane::kubernetes::needs();
        let needed = needed.into_iter().map(|(group, resource, verb)| (group.to_owned(), resource, verb.to_owned()));
        assert_eq!(allowed, needed.collect::<std::collections::BTreeSet<_>>());
        let lease = weft_control_plane::kubernetes::lease::LEASE;
        assert!(of_kind(&all, "Role").to_string().contains(&format!("\"resourceNames\":[\"{lease}\"]")));
    }

    #[test]
    fn every_template_of_the_chart_is_printed() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft/templates");
        let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let yaml: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "yaml")).collect();
        assert_eq!(yaml.len(), TEMPLATES.len(), "{yaml:?}");
    }

    #[test]
    fn flags_reach_the_manifests() {
        let flags = ["--namespace", "mesh", "--image", "r.example:5000/weft@sha256:ab", "--failure-policy", "ignore"];
        let all = objects(&render(&args(&flags)).unwrap());
        for object in &all {
            let namespaced = object["metadata"].get("namespace");
            assert!(namespaced.is_none_or(|namespace| namespace == "mesh"), "{object}");
        }
        let webhook = &of_kind(&all, "MutatingWebhookConfiguration")["webhooks"][0];
        assert_eq!(
            (&webhook["failurePolicy"], &webhook["clientConfig"]["service"]["namespace"]),
            (&"Ignore".into(), &"mesh".into())
        );
        let excluded = &webhook["namespaceSelector"]["matchExpressions"][0]["values"];
        assert!(excluded.as_array().unwrap().contains(&"mesh".into()), "it must start without itself: {excluded}");
        let container = &of_kind(&all, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "r.example:5000/weft@sha256:ab");
    }

    #[test]
    fn the_control_plane_understands_its_arguments() {
        let all = objects(&render(&args(&["--namespace", "mesh"])).unwrap());
        let container = &of_kind(&all, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        let words = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let cli = Cli::try_parse_from(std::iter::once("weft").chain(words)).unwrap();
        let Command::ControlPlane(args) = cli.command else { panic!("no control plane") };
        assert!(!args.dev);
        assert_eq!(args.source.source, weft_control_plane::config::SourceKind::Kubernetes);
        assert_eq!(args.webhook.webhook_name, ["weft-webhook.mesh.svc"]);
        assert_eq!(args.webhook.options().xds, Options::of("mesh").xds);
        let webhook = &of_kind(&all, "MutatingWebhookConfiguration")["metadata"]["name"];
        assert_eq!(*webhook, args.webhook.webhook_configuration.as_str());
        let role = of_kind(&all, "ClusterRole").to_string();
        assert!(role.contains(&format!("\"resourceNames\":[{webhook}]")) && !role.contains("secrets"), "{role}");
    }

    #[test]
    fn the_control_plane_gets_no_sidecar() {
        let text = render(&args(&[])).unwrap();
        let filtered = filter("install", &text, Task::Inject(&Options::of("weft-system"))).unwrap();
        assert_eq!(filtered.text, text);
        assert_eq!(filtered.pods, [("deployment/weft-control-plane".to_owned(), "opted out")]);
    }

    #[test]
    fn a_value_cannot_become_yaml() {
        for bad in ["", "a b", "a\nb: c", "{{x}}", "a\"", "a#", "x: y", "a:", "- a"] {
            assert!(render(&args(&[&format!("--image={bad}")])).is_err(), "{bad:?}");
        }
    }
}
