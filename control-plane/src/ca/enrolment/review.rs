//! Kubernetes service account tokens: the API server says whose they are (TokenReview). Nothing is remembered, so a token
//! that it no longer takes is refused at once; whatever goes wrong refuses.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use axum::body::{Body, to_bytes};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::TlsConnector;
use weft_policy::model::ObjectName;
use zeroize::Zeroizing;

use super::refusal::{Reason, Refusal};

/// For whom a token must have been made.
pub const AUDIENCE: &str = "weft";
/// Bytes of a token.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Where a pod finds what it needs to ask.
const IN_CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// The whole question, with the connection.
const LIMIT: Duration = Duration::from_secs(5);
/// Questions at once: more are turned away.
const AT_ONCE: usize = 16;
/// Bytes of an answer.
const MAX_ANSWER: usize = 256 * 1024;

/// Who asks. Clones share how much at once.
#[derive(Clone)]
pub struct Reviewer {
    server: Server,
    slots: Arc<Semaphore>,
}

/// Where to ask.
#[derive(Clone)]
enum Server {
    /// By a URL and files.
    Files(Files),
    /// Whatever a kubeconfig says.
    Client(Client),
}

/// An API server, and files that are read each time, because they are rotated.
#[derive(Clone)]
struct Files {
    host: String,
    port: u16,
    ca: PathBuf,
    token: PathBuf,
}

/// Whose token it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Reviewer {
    /// Asks the API server at `url` (https), which `ca` vouches for, with the token in `token`.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, ca: PathBuf, token: PathBuf) -> Result<Self> {
        let parsed: Uri = url.parse().with_context(|| format!("--kubernetes-api {url:?}"))?;
        ensure!(parsed.scheme_str() == Some("https"), "--kubernetes-api {url:?}: expected https://HOST[:PORT]");
        ensure!(matches!(parsed.path(), "" | "/"), "--kubernetes-api {url:?}: a path is not supported");
        let host = parsed.host().with_context(|| format!("--kubernetes-api {url:?}: no host"))?;
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), parsed.port_u16().unwrap_or(443));
        Ok(Self::at(Server::Files(Files { host, port, ca, token })))
    }

    /// Asks whom this client asks.
    #[must_use]
    pub fn of(client: Client) -> Self {
        Self::at(Server::Client(client))
    }

    fn at(server: Server) -> Self {
        Self { server, slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// As the flags say; without them as a pod finds it; none outside Kubernetes.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn from_flags(url: Option<&str>, ca: Option<PathBuf>, token: Option<PathBuf>) -> Result<Option<Self>> {
        let file = |name: &str| PathBuf::from(IN_CLUSTER).join(name);
        let (ca, token) = (ca.unwrap_or_else(|| file("ca.crt")), token.unwrap_or_else(|| file("token")));
        if let Some(url) = url {
            return Self::new(url, ca, token).map(Some);
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(host) = variable("KUBERNETES_SERVICE_HOST").filter(|_| ca.exists() && token.exists()) else {
            return Ok(None);
        };
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Self::new(&format!("https://{host}:{port}"), ca, token).map(Some)
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// Why it is not known; the details are in the log only.
    pub async fn review(&self, token: &str) -> Result<ServiceAccount, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::new(Reason::Invalid, format!("the token has more than {MAX_TOKEN} bytes")));
        }
        let Ok(_slot) = self.slots.try_acquire() else {
            return Err(Refusal::rate_limited("with Kubernetes tokens at once", Duration::from_secs(1)));
        };
        let answer = timeout(LIMIT, self.server.ask(token)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {} s", LIMIT.as_secs())));
        let status = answer.map_err(|error| {
            let server = self.server.to_string();
            tracing::warn!(server, error = format!("{error:#}"), "Kubernetes cannot be asked about a token");
            let text = "Kubernetes cannot be asked about the token: the log of the control plane says why";
            Refusal { retry: Some(Duration::from_secs(2)), ..Refusal::new(Reason::Review, text) }
        })?;
        judge(&status).map_err(|why| Refusal::new(Reason::Review, why))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(files) => write!(f, "{}:{}", files.host, files.port),
            Self::Client(_) => f.write_str("that of --kubeconfig"),
        }
    }
}

impl Server {
    async fn ask(&self, token: &str) -> Result<TokenReviewStatus> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: Some(token.into()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = match self {
            Self::Files(files) => files.ask(&review).await?,
            Self::Client(client) => {
                let all: Api<TokenReview> = Api::all(client.clone());
                all.create(&PostParams::default(), &review).await.map_err(|error| match error {
                    // Its own words may hold parts of the token.
                    kube::Error::Api(status) => refused(&status.code),
                    kube::Error::SerdeError(_) => anyhow::anyhow!("the answer is no TokenReview"),
                    error => error.into(),
                })?
            }
        };
        answer.status.context("the answer has no status")
    }
}

impl Files {
    async fn ask(&self, review: &TokenReview) -> Result<TokenReview> {
        let file = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&file(&self.ca)?) {
            let root = root.map_err(|error| anyhow::anyhow!("{}: {error}", self.ca.display()))?;
            roots.add(root).with_context(|| self.ca.display().to_string())?;
        }
        let own = Zeroizing::new(file(&self.token)?);
        let bearer = Zeroizing::new([b"Bearer ".as_slice(), own.trim_ascii()].concat());
        let mut bearer = HeaderValue::from_bytes(&bearer).with_context(|| self.token.display().to_string())?;
        bearer.set_sensitive(true);
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone()).context("--kubernetes-api")?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.context("connect")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("TLS")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let review = serde_json::to_vec(review)?;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let request = Request::builder()
            .method(Method::POST)
            .uri(PATH)
            .header(header::HOST, format!("{host}:{}", self.port))
            .header(header::AUTHORIZATION, bearer)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Body::from(review))?;
        let exchange = async {
            let answer = sender.send_request(request).await.context("send")?;
            let code = answer.status();
            let body = to_bytes(Body::new(answer.into_body()), MAX_ANSWER).await.context("answer")?;
            anyhow::Ok((code, body))
        };
        tokio::pin!(exchange);
        // The connection ends with this function, whatever comes of it. When it ends before, the exchange has all that
        // there is, or knows why there is nothing.
        let (code, body) = tokio::select! {
            result = &mut exchange => result?,
            _ = connection => exchange.await?,
        };
        if !matches!(code, StatusCode::OK | StatusCode::CREATED) {
            return Err(refused(&code));
        }
        serde_json::from_slice(&body).context("the answer is no TokenReview")
    }
}

fn refused(code: &dyn fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("answered {code}: may the control plane create tokenreviews.authentication.k8s.io?")
}

/// Whose token it is by the answer.
fn judge(status: &TokenReviewStatus) -> Result<ServiceAccount, String> {
    if status.error.as_ref().is_some_and(|error| !error.is_empty()) || status.authenticated != Some(true) {
        // The API server's own words may hold parts of the token.
        return Err("Kubernetes does not vouch for the token: is it current, and of this cluster?".into());
    }
    // A server that knows no audiences leaves them out: then it has not looked at them.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(format!("the token is not for the audience {AUDIENCE:?}: project one that is"));
    }
    let user = status.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
    let mut parts = user.strip_prefix("system:serviceaccount:").unwrap_or_default().split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(name), None) if ObjectName::parse(&format!("{namespace}/{name}")).is_some() => {
            Ok(ServiceAccount { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(format!("the token is {user:?}'s, who is no service account with a name that is a DNS label")),
    }
}

#[cfg(test)]
mod tests;
