//! One fetch: HTTPS to an address that was asked about, no redirect, a bound on time and size.

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, sync::OnceCell};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{address::forbidden, keys::MAX_BYTES};

/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;
/// One of them has this long, so that the next one has a turn.
const CONNECT: Duration = Duration::from_secs(3);

/// Fetches.
pub struct Client {
    /// Hosts that may be anywhere.
    allowed: BTreeSet<String>,
    /// More roots than the platform has.
    roots: Vec<CertificateDer<'static>>,
    /// Made at the first fetch: who has no URLs reads no certificates.
    tls: OnceCell<TlsConnector>,
}

/// A URL, taken apart.
struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Client {
    /// Whose requests go to public addresses, and to these hosts wherever they are. `ca`, PEM, is trusted beside what the
    /// platform trusts.
    ///
    /// # Errors
    /// When the file has no certificates.
    pub fn new(allowed: &[String], ca: Option<&PathBuf>) -> anyhow::Result<Self> {
        let roots = match ca {
            Some(file) => certificates(file).with_context(|| format!("--jwks-ca {}", file.display()))?,
            None => Vec::new(),
        };
        let allowed = allowed.iter().map(|host| bare(&host.to_ascii_lowercase()).to_owned()).collect();
        Ok(Self { allowed, roots, tls: OnceCell::new() })
    }

    /// The text behind a URL.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub async fn fetch(&self, url: &str) -> Result<String, String> {
        let target = parse(url)?;
        let io = self.connect(&target).await?;
        let tls = self.tls.get_or_try_init(|| self.connector()).await?;
        let name = ServerName::try_from(target.host.clone()).map_err(|_| "its host is no name for TLS".to_owned())?;
        let io = tls.connect(name, io).await.map_err(|error| format!("no TLS with {}: {error}", target.host))?;
        get(&target, io).await
    }

    /// A connection to an address of the host. Every one is asked about before any is dialled; a name that resolves to
    /// one that is forbidden is refused, whatever else it resolves to.
    async fn connect(&self, target: &Target) -> Result<TcpStream, String> {
        let Target { host, port, .. } = target;
        let resolved = tokio::net::lookup_host((host.as_str(), *port)).await;
        let resolved: Vec<SocketAddr> =
            resolved.map_err(|error| format!("{host} does not resolve: {error}"))?.collect();
        if !self.allowed.contains(host) {
            for address in &resolved {
                if let Some(kind) = forbidden(address.ip()) {
                    return Err(format!(
                        "{host} leads to {kind} address ({}), from which nothing is fetched (--allow-jwks-host {host})",
                        address.ip()
                    ));
                }
            }
        }
        let mut last = format!("{host} has no address");
        for address in resolved.iter().take(ADDRESSES) {
            match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(io)) => return Ok(io),
                Ok(Err(error)) => last = format!("no connection to {address}: {error}"),
                Err(_) => last = format!("no connection to {address} within {CONNECT:?}"),
            }
        }
        Err(last)
    }

    async fn connector(&self) -> Result<TlsConnector, String> {
        let more = self.roots.clone();
        // The files of the platform are read where nothing else waits.
        let roots = tokio::task::spawn_blocking(move || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots.add_parsable_certificates(more);
            roots
        });
        let roots = roots.await.map_err(|error| format!("the roots were not read: {error}"))?;
        if roots.is_empty() {
            return Err("the platform has no root certificates (install them, or use --jwks-ca)".to_owned());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Whether this can be the URL of a key set.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(url: &str) -> Result<(), String> {
    parse(url).map(|_| ())
}

fn parse(url: &str) -> Result<Target, String> {
    let uri: Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
    if uri.scheme_str() != Some("https") {
        return Err("it is not https".to_owned());
    }
    let authority = uri.authority().ok_or("it has no host")?;
    if authority.as_str().contains('@') {
        return Err("it has a user in it".to_owned());
    }
    let host = bare(&authority.host().to_ascii_lowercase()).to_owned();
    if host.is_empty() {
        return Err("it has no host".to_owned());
    }
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => 443,
        _ => authority.port_u16().filter(|port| *port > 0).ok_or("its port is none")?,
    };
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    Ok(Target { host, port, path })
}

/// Without the brackets of IPv6.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

async fn get(target: &Target, io: TlsStream<TcpStream>) -> Result<String, String> {
    let failed = |error: hyper::Error| format!("no answer of {}: {error}", target.host);
    let (mut sender, connection) =
        http1::Builder::new().max_headers(128).handshake(TokioIo::new(io)).await.map_err(failed)?;
    let host = match target.host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => format!("[{}]", target.host),
        _ => target.host.clone(),
    };
    let host = if target.port == 443 { host } else { format!("{host}:{}", target.port) };
    let request = Request::get(&target.path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(format!("{} answers {status}: redirects are not followed, give the last URL", target.host));
        }
        if status != StatusCode::OK {
            return Err(format!("{} answers {status}", target.host));
        }
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(failed)?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            if bytes.len() + data.len() > MAX_BYTES {
                return Err(format!("{} sends more than {MAX_BYTES} bytes", target.host));
            }
            bytes.extend_from_slice(data);
        }
        String::from_utf8(bytes).map_err(|_| format!("{} sends no text", target.host))
    };
    // The connection is driven here, so that it ends with the fetch.
    tokio::pin!(connection);
    tokio::select! {
        result = exchange => result,
        ended = async { match connection.await { Ok(()) => std::future::pending().await, Err(error) => error } } => {
            Err(failed(ended))
        }
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let mut pem = Vec::new();
    std::fs::File::open(file)?.take(1 << 20).read_to_end(&mut pem)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| anyhow::anyhow!("{error}"))?;
    anyhow::ensure!(!found.is_empty(), "it has no certificate in PEM");
    Ok(found)
}

#[cfg(test)]
mod tests;
