//! Flags that only a pod needs, and the files that Kubernetes makes for it.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::health::AppProbe;

/// Bytes of a file of labels.
const MAX_LABELS: u64 = 1024 * 1024;

/// Flags of a sidecar in a pod.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PodArgs {
    /// File of labels as Kubernetes' downward API writes it, KEY="VALUE" on each line; --label wins
    #[arg(long, value_name = "FILE")]
    pub label_file: Option<PathBuf>,
    /// Liveness and readiness for everybody who can reach it, and the probes of --app-probe; nothing else
    #[arg(long, value_name = "ADDR")]
    pub health_listen: Option<SocketAddr>,
    /// Metrics at --health-listen too, and the control plane is told that they are there: for a Prometheus that does not run
    /// on this machine
    #[arg(long, requires = "health_listen")]
    pub health_metrics: bool,
    /// Probe or hook of the app that is made at /probe/NAME of --health-listen: NAME=JSON, with httpGet, tcpSocket or grpc
    /// and timeoutSeconds as in a pod
    #[arg(long = "app-probe", value_name = "NAME=JSON", requires = "health_listen")]
    pub app_probes: Vec<AppProbe>,
}

impl PodArgs {
    /// The labels of the file, and then those of the flags.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn labels(&self, flags: &[(String, String)]) -> Result<Vec<(String, String)>> {
        let mut labels = BTreeMap::new();
        if let Some(path) = &self.label_file {
            let shown = || format!("--label-file {}", path.display());
            let size = std::fs::metadata(path).with_context(shown)?.len();
            if size > MAX_LABELS {
                bail!("{}: {size} bytes: at most {MAX_LABELS} are read", shown());
            }
            labels = parse(&std::fs::read_to_string(path).with_context(shown)?).with_context(shown)?;
        }
        labels.extend(flags.iter().cloned());
        Ok(labels.into_iter().collect())
    }
}

/// Lines of `key="value"`; a value of a label needs no escapes.
fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    let one = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        (!key.is_empty() && !value.contains(['"', '\\'])).then(|| (key.to_owned(), value.to_owned()))
    };
    let lines = text.lines().filter(|line| !line.is_empty()).zip(1..);
    lines.map(|(line, number)| one(line).with_context(|| format!("line {number}: expected KEY=\"VALUE\""))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_the_downward_api_are_read_and_flags_win() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("labels");
        std::fs::write(&file, "app=\"web\"\nempty=\"\"\napp.kubernetes.io/part-of=\"shop\"").expect("written");
        let args = PodArgs { label_file: Some(file.clone()), ..PodArgs::default() };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = args.labels(&[pair("app", "other")]).expect("good");
        assert_eq!(labels, [pair("app", "other"), pair("app.kubernetes.io/part-of", "shop"), pair("empty", "")]);
        for bad in ["app", "app=web", "=\"x\"", "app=\"a\\\"b\""] {
            std::fs::write(&file, bad).expect("written");
            assert!(format!("{:#}", args.labels(&[]).expect_err(bad)).contains("line 1: expected KEY=\"VALUE\""));
        }
    }
}
