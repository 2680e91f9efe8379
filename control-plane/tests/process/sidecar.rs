//! A sidecar as far as discovery goes: it enrols with the development token, registers and takes what is pushed.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use weft_proto::{
    ResourceType,
    core::Node,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    identity::{SignCertificateRequest, identity_client::IdentityClient},
    v1::{self, Registration, WorkloadPort},
};
use weft_svid::{Svid, TrustStore};
use zeroize::Zeroizing;

use crate::control_plane::LIMIT;

const NAMESPACE: &str = "shop";
const KIND: ResourceType = ResourceType::EndpointSlice;

/// A certificate, and whom it trusts.
pub struct Identity {
    xds: SocketAddr,
    svid: Svid,
    trust: TrustStore,
}

/// A stream that follows the endpoints of one service.
pub struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    registration: Registration,
}

/// Gets a certificate for this service account.
pub async fn enrol(xds: SocketAddr, runtime: &Path, account: &str) -> Result<Identity> {
    let text = std::fs::read_to_string(runtime.join(format!("weft/dev-{}.token", xds.port())))?;
    enrol_with(xds, &text, account).await
}

/// The same with the text of a token file, which may be an old one.
pub async fn enrol_with(xds: SocketAddr, text: &str, account: &str) -> Result<Identity> {
    let token = text.lines().next().context("a token")?;
    let roots = CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| Ok(der?.to_vec()));
    let roots = roots.collect::<Result<Vec<_>>>()?;
    let trust = TrustStore::default();
    trust.set(&weft_svid::root_trust_domain(&roots).context("a trust domain")?, &roots, &[])?;
    let channel = connect(xds, weft_svid::client_config(None, &trust, &[b"h2"])?).await?;
    sign(xds, channel, trust, account, Some(token)).await
}

async fn sign(
    xds: SocketAddr,
    channel: Channel,
    trust: TrustStore,
    account: &str,
    token: Option<&str>,
) -> Result<Identity> {
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
    let mut request = tonic::Request::new(SignCertificateRequest {
        csr: csr.der().to_vec().into(),
        namespace: NAMESPACE.into(),
        service_account: account.into(),
        lifetime: None,
    });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let answer = timeout(LIMIT, IdentityClient::new(channel).sign_certificate(request)).await??.into_inner();
    let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok(Identity { xds, svid: Svid::new(chain, Zeroizing::new(key.serialize_der()))?, trust })
}

/// A key and its signing request.
#[derive(Clone)]
pub struct Csr(Vec<u8>);

impl Csr {
    /// Of a new key, which nobody needs to keep.
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        Self(request.der().to_vec())
    }
}

/// Gets a certificate for this request with what a token file says.
pub async fn certify(xds: SocketAddr, text: &str, account: &str, csr: &Csr) -> Result<Vec<Vec<u8>>> {
    let token = text.lines().next().context("a token")?;
    let roots = CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| Ok(der?.to_vec()));
    let roots = roots.collect::<Result<Vec<_>>>()?;
    let trust = TrustStore::default();
    trust.set(&weft_svid::root_trust_domain(&roots).context("a trust domain")?, &roots, &[])?;
    let channel = connect(xds, weft_svid::client_config(None, &trust, &[b"h2"])?).await?;
    let mut request = tonic::Request::new(SignCertificateRequest {
        csr: csr.0.clone().into(),
        namespace: NAMESPACE.into(),
        service_account: account.into(),
        lifetime: None,
    });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let answer = timeout(LIMIT, IdentityClient::new(channel).sign_certificate(request)).await??.into_inner();
    Ok(answer.chain.iter().map(|der| der.to_vec()).collect())
}

async fn connect(xds: SocketAddr, config: rustls::ClientConfig) -> Result<Channel> {
    let config = Arc::new(config);
    let connector = tower::service_fn(move |_: http::Uri| {
        let config = Arc::clone(&config);
        async move {
            let name = ServerName::try_from("control-plane.weft-system.weft").map_err(std::io::Error::other)?;
            let io = TlsConnector::from(config).connect(name, TcpStream::connect(xds).await?).await?;
            Ok::<_, std::io::Error>(TokioIo::new(io))
        }
    });
    Ok(Endpoint::from_shared(format!("http://{xds}"))?.connect_with_connector(connector).await?)
}

impl Identity {
    /// Another certificate, by this one.
    pub async fn renew(&self, account: &str) -> Result<Self> {
        let channel = connect(self.xds, weft_svid::client_config(Some(&self.svid), &self.trust, &[b"h2"])?).await?;
        sign(self.xds, channel, self.trust.clone(), account, None).await
    }

    /// The certificate, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.svid.chain
    }

    /// When the certificate begins, in seconds since the Unix epoch.
    pub fn begins(&self) -> u64 {
        self.svid.not_before.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
    }

    /// The roots that it trusts from now on.
    pub fn trust(&self, bundle: &v1::TrustBundle) -> Result<()> {
        let roots: Vec<_> = bundle.roots.iter().map(|root| root.to_vec()).collect();
        Ok(self.trust.set(&bundle.trust_domain, &roots, &[])?)
    }

    /// Registers a workload of this name, and follows the trust bundle.
    pub async fn follow(&self, name: &str) -> Result<Stream> {
        let channel = connect(self.xds, weft_svid::client_config(Some(&self.svid), &self.trust, &[b"h2"])?).await?;
        let registration = Registration {
            name: name.into(),
            namespace: NAMESPACE.into(),
            address: "127.0.0.1".into(),
            epoch_ms: 1,
            ..Registration::default()
        };
        let first = DeltaDiscoveryRequest {
            node: Some(Node { id: format!("{NAMESPACE}/{name}"), ..Node::default() }),
            registration: Some(registration.clone()),
            type_url: ResourceType::TrustBundle.type_url().into(),
            resource_names_subscribe: vec!["*".into()],
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, receiver) = mpsc::channel(8);
        requests.send(first).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = timeout(LIMIT, client.delta_aggregated_resources(ReceiverStream::new(receiver))).await??;
        Ok(Stream { requests, responses: responses.into_inner(), registration })
    }

    /// Registers a workload of this name and address, and follows the endpoints of a service.
    pub async fn open(&self, name: &str, address: &str, service: &str) -> Result<Stream> {
        let channel = connect(self.xds, weft_svid::client_config(Some(&self.svid), &self.trust, &[b"h2"])?).await?;
        let registration = Registration {
            name: name.into(),
            namespace: NAMESPACE.into(),
            labels: [("app".to_owned(), service.to_owned())].into(),
            address: address.into(),
            mesh_address: format!("{address}:15008"),
            ports: vec![WorkloadPort { port: 80, name: "http".into(), ..WorkloadPort::default() }],
            healthy: true,
            epoch_ms: 1,
            ..Registration::default()
        };
        let first = DeltaDiscoveryRequest {
            node: Some(Node { id: format!("{NAMESPACE}/{name}"), ..Node::default() }),
            registration: Some(registration.clone()),
            type_url: KIND.type_url().into(),
            resource_names_subscribe: vec![format!("{NAMESPACE}/{service}/0")],
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, receiver) = mpsc::channel(8);
        requests.send(first).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = timeout(LIMIT, client.delta_aggregated_resources(ReceiverStream::new(receiver))).await??;
        Ok(Stream { requests, responses: responses.into_inner(), registration })
    }
}

impl Stream {
    /// The next trust bundle, and the nonce by which it is acknowledged.
    pub async fn bundle(&mut self) -> Result<(v1::TrustBundle, String)> {
        let response = timeout(LIMIT, self.responses.message()).await?.map_err(anyhow::Error::from)?;
        let response = response.context("the stream ended")?;
        let any = response.resources[0].resource.clone().context("a resource")?;
        Ok((v1::TrustBundle::decode(any.value.as_ref())?, response.nonce))
    }

    /// Takes a trust bundle: trusted and acknowledged.
    pub async fn take(&mut self, identity: &Identity) -> Result<v1::TrustBundle> {
        let (bundle, nonce) = self.bundle().await?;
        identity.trust(&bundle)?;
        self.acknowledge(nonce).await?;
        Ok(bundle)
    }

    /// Acknowledges a trust bundle.
    pub async fn acknowledge(&mut self, nonce: String) -> Result<()> {
        let type_url = ResourceType::TrustBundle.type_url().into();
        let ack = DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..DeltaDiscoveryRequest::default() };
        Ok(self.requests.send(ack).await?)
    }

    /// Says that this is the certificate from now on.
    pub async fn renewed(&mut self, identity: &Identity) -> Result<()> {
        let end = identity.svid.identity.not_after.duration_since(std::time::UNIX_EPOCH)?;
        self.registration.certificate_end_ms = u64::try_from(end.as_millis())?;
        let news = DeltaDiscoveryRequest {
            registration: Some(self.registration.clone()),
            type_url: ResourceType::TrustBundle.type_url().into(),
            ..DeltaDiscoveryRequest::default()
        };
        Ok(self.requests.send(news).await?)
    }

    /// Waits for the end of the stream, and gives what it is told.
    pub async fn ended(&mut self) -> Result<tonic::Status> {
        let end = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return tonic::Status::ok(""),
                    Err(status) => return status,
                }
            }
        };
        Ok(timeout(LIMIT, end).await?)
    }

    /// Takes pushes until the service has endpoints with exactly these addresses, in order.
    pub async fn endpoints(&mut self, addresses: &[&str]) -> Result<()> {
        let pushed = async {
            while let Some(response) = self.responses.message().await? {
                let ack = DeltaDiscoveryRequest {
                    type_url: response.type_url.clone(),
                    response_nonce: response.nonce,
                    ..DeltaDiscoveryRequest::default()
                };
                self.requests.send(ack).await?;
                if response.type_url != KIND.type_url() {
                    continue;
                }
                for resource in response.resources {
                    let any = resource.resource.context("a resource")?;
                    let slice = v1::EndpointSlice::decode(any.value.as_ref())?;
                    if slice.endpoints.iter().map(|endpoint| endpoint.address.as_str()).eq(addresses.iter().copied()) {
                        return Ok(true);
                    }
                }
            }
            anyhow::Ok(false)
        };
        let found = timeout(LIMIT, pushed).await.with_context(|| format!("no push with {addresses:?}"))??;
        ensure!(found, "the stream ended");
        Ok(())
    }
}
