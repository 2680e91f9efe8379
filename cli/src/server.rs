//! One connection to the server of objects: Weft's API or a Kubernetes API server. Requests, refusals, warnings.
//! Addresses, TLS and credentials are kube's work; what the paths mean is the commands'.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Args;
use http::{Method, Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use kube::{Client, Config, client::Body};
use serde_json::Value;

use crate::style;

mod lines;

pub use lines::Lines;

/// No single answer takes longer.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time that the server may measure before it answers.
const SLOWEST: Duration = Duration::from_secs(300);
/// After this, people are told what is being waited for.
const SILENCE: Duration = Duration::from_secs(1);

/// Which server, and as whom.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The control plane's API, or a Kubernetes API server
    #[arg(long, env = "WEFT_SERVER", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub server: String,
    /// File with the certificates that an https server must chain to [default: those of the system]
    #[arg(long, env = "WEFT_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File with the bearer token that says who you are
    #[arg(long, env = "WEFT_API_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Take server and credentials from this kubeconfig's current context instead
    #[arg(long, env = "WEFT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Why a call gave no object.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answered.
    #[error("{method} {url}: {why}; is the control plane running, and is --server (WEFT_SERVER) right?")]
    Unreachable {
        /// Method of the request.
        method: Method,
        /// The whole URL.
        url: String,
        /// The chain of causes.
        why: String,
    },
    /// The server said no.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// The answer is not what such a server sends.
    #[error("{method} {url}: {why}; is this the API of a control plane?")]
    Nonsense {
        /// Method of the request.
        method: Method,
        /// The whole URL.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
}

/// A `Status` of kind Failure, or as much of it as the answer had.
#[derive(Clone, Debug, Default)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// For people.
    pub message: String,
    /// Field path and text of each thing that is wrong with the object.
    pub causes: Vec<(String, String)>,
    /// The whole answer.
    pub body: Value,
}

impl CallError {
    /// The HTTP status, when the server answered with a refusal.
    pub fn code(&self) -> Option<u16> {
        if let Self::Refused(refusal) = self { Some(refusal.code) } else { None }
    }
}

/// A connection and the warnings that came over it.
pub struct Server {
    client: Client,
    url: String,
    warned: Mutex<BTreeSet<String>>,
    /// Seconds by which its clock is ahead.
    ahead: Mutex<Option<i64>>,
}

impl Server {
    /// Prepares the connection; nothing is sent yet.
    pub async fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        let mut config = match &args.kubeconfig {
            Some(file) => from_kubeconfig(file).await?,
            None => direct(args)?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(SLOWEST + TIMEOUT);
        config.default_retry = false;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).with_context(|| format!("--server: {url}: cannot be used"))?;
        Ok(Self { client, url, warned: Mutex::default(), ahead: Mutex::default() })
    }

    /// The address, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The JSON at a path.
    pub async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.call(Call::new(Method::GET, path)).await
    }

    /// The JSON that a call answers. Warnings are printed as they come, each once for each object.
    pub async fn call(&self, call: Call<'_>) -> Result<Value, CallError> {
        self.call_within(call, TIMEOUT).await
    }

    /// The same for an answer that takes a while: at most `limit`.
    pub async fn call_within(&self, call: Call<'_>, limit: Duration) -> Result<Value, CallError> {
        let (method, url) = (call.method.clone(), format!("{}{}", self.url, call.path));
        let about = call.about.clone();
        let unreachable = |why: String| CallError::Unreachable { method: method.clone(), url: url.clone(), why };
        let request = call.request().map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let response = self.client.send(request).await.map_err(|error| unreachable(causes(&error)))?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| unreachable(causes(&error)))?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        let late = || unreachable(format!("no answer in {} s", limit.as_secs()));
        let note = format!("waiting for {}", self.url);
        let waited = style::told(SILENCE, &note, exchange);
        let response = tokio::time::timeout(limit, waited).await.map_err(|_| late())??;
        self.warn(&about, &response);
        self.look_at_clock(&response);
        let status = response.status();
        let value: Result<Value, _> = serde_json::from_slice(response.body());
        if status.is_success() {
            return value.map_err(|error| CallError::Nonsense { method, url, why: format!("not JSON: {error}") });
        }
        let text = String::from_utf8_lossy(response.body());
        let otherwise = format!("{method} {url}: status {}: {}", status.as_u16(), text.trim());
        Err(CallError::Refused(Box::new(refusal(status.as_u16(), value.unwrap_or_default(), otherwise))))
    }

    /// By how many seconds the server's clock was ahead of ours at its last answer; `None`: it did not tell its time.
    pub fn clock_ahead(&self) -> Option<i64> {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at_clock(&self, response: &Response<bytes::Bytes>) {
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let seconds = |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok();
        let theirs = date.and_then(|date| httpdate::parse_http_date(date).ok()).and_then(seconds);
        let ahead = theirs.zip(seconds(SystemTime::now())).map(|(theirs, ours)| theirs - ours);
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
    }

    /// 0, or 3 when a warning came.
    pub fn exit_code(&self) -> ExitCode {
        let warned = !self.warned.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        ExitCode::from(if warned { 3 } else { 0 })
    }

    /// The warnings so far, with the objects that they are about.
    #[cfg(test)]
    pub fn warned(&self) -> Vec<String> {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn warn(&self, about: &str, response: &Response<bytes::Bytes>) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        for value in response.headers().get_all(header::WARNING) {
            let text = format!("{about}{}", warning(&String::from_utf8_lossy(value.as_bytes())));
            if warned.insert(text.clone()) {
                style::warn(&text);
            }
        }
    }
}

/// One request.
pub struct Call<'a> {
    method: Method,
    path: String,
    accept: &'static str,
    content_type: &'static str,
    body: Option<&'a Value>,
    /// Stands before warnings.
    about: String,
}

impl<'a> Call<'a> {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let (accept, content_type) = ("application/json", "application/json");
        Self { method, path: path.into(), accept, content_type, body: None, about: String::new() }
    }

    /// About an object, such as `HTTPRoute shop/r`: warnings name it.
    pub fn about(self, object: &str) -> Self {
        Self { about: format!("{object}: "), ..self }
    }

    /// Other forms of the answer than JSON objects.
    pub fn accept(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    /// With a body of JSON.
    pub fn body(self, body: &'a Value) -> Self {
        Self { body: Some(body), ..self }
    }

    /// With a body that is a JSON merge patch.
    pub fn merge_patch(self, body: &'a Value) -> Self {
        Self { content_type: "application/merge-patch+json", ..self }.body(body)
    }

    fn request(self) -> Result<Request<Body>, http::Error> {
        let body = self.body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(header::ACCEPT, self.accept)
            .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")));
        let request =
            if self.body.is_some() { request.header(header::CONTENT_TYPE, self.content_type) } else { request };
        request.body(Body::from(body))
    }
}

/// `path?name=value&...` of the pairs that have a value.
pub fn with_query(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        query.append_pair(name, value);
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

fn direct(args: &ServerArgs) -> anyhow::Result<Config> {
    let server = if args.server.contains("://") { args.server.clone() } else { format!("http://{}", args.server) };
    let uri: Uri = server.parse().with_context(|| format!("--server: {}: not a URL", args.server))?;
    anyhow::ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()),
        "--server: {}: not http://HOST:PORT or https://HOST:PORT",
        args.server
    );
    let mut config = Config::new(uri);
    if let Some(file) = &args.ca_file {
        std::fs::metadata(file).with_context(|| format!("--ca-file: {}: cannot be read", file.display()))?;
        config.root_cert_file = Some(file.clone());
    }
    if let Some(file) = &args.token_file {
        let text = std::fs::read_to_string(file);
        let text = text.with_context(|| format!("--token-file: {}: cannot be read", file.display()))?;
        let token = text.lines().next().unwrap_or_default().trim();
        anyhow::ensure!(!token.is_empty(), "--token-file: {}: its first line is empty", file.display());
        let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']);
        let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let clear = config.cluster_url.scheme_str() == Some("http") && !local;
        anyhow::ensure!(!clear, "--token-file: it would be sent in the clear to {}: use https", args.server);
        config.auth_info.token = Some(token.to_owned().into());
    }
    Ok(config)
}

async fn from_kubeconfig(file: &std::path::Path) -> anyhow::Result<Config> {
    let read = kube::config::Kubeconfig::read_from(file);
    let read = read.with_context(|| format!("--kubeconfig: {}: cannot be used", file.display()))?;
    let config = Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default()).await;
    config.with_context(|| format!("--kubeconfig: {}: its current context cannot be used", file.display()))
}

fn refusal(code: u16, body: Value, otherwise: String) -> Refusal {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let causes = body["details"]["causes"].as_array().into_iter().flatten();
    let causes = causes.map(|cause| (text(&cause["field"]), text(&cause["message"]))).collect();
    let mut message = if body["message"].is_string() { text(&body["message"]) } else { otherwise };
    if code == 401 {
        message.push_str("; --token-file (WEFT_API_TOKEN_FILE) names the file of yours");
    }
    Refusal { code, message, causes, body }
}

/// The chain of an error's causes, each once.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Outer errors of the client repeat the text of the inner ones.
        texts.retain(|outer| !outer.contains(&text));
        texts.push(text);
        next = error.source();
    }
    texts.join(": ")
}

/// The text of `299 - "text"`.
fn warning(header: &str) -> String {
    let quoted = header.split_once('"').map(|(_, rest)| rest);
    let Some(quoted) = quoted else { return header.to_owned() };
    let mut text = String::new();
    let mut letters = quoted.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => text.extend(letters.next()),
            _ => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests;
