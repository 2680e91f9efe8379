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
}

/// Gets a certificate for this service account.
pub async fn enrol(xds: SocketAddr, runtime: &Path, account: &str) -> Result<Identity> {
    let text = std::fs::read_to_string(runtime.join(format!("weft/dev-{}.token", xds.port())))?;
    let token = text.lines().next().context("a token")?;
    let roots = CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| Ok(der?.to_vec()));
    let roots = roots.collect::<Result<Vec<_>>>()?;
    let trust = TrustStore::default();
    trust.set(&weft_svid::root_trust_domain(&roots).context("a trust domain")?, &roots, &[])?;
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
    let mut request = tonic::Request::new(SignCertificateRequest {
        csr: csr.der().to_vec().into(),
        namespace: NAMESPACE.into(),
        service_account: account.into(),
        lifetime: None,
    });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let channel = connect(xds, weft_svid::client_config(None, &trust, &[b"h2"])?).await?;
    let answer = timeout(LIMIT, IdentityClient::new(channel).sign_certificate(request)).await??.into_inner();
    let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok(Identity { xds, svid: Svid::new(chain, Zeroizing::new(key.serialize_der()))?, trust })
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
            registration: Some(registration),
            type_url: KIND.type_url().into(),
            resource_names_subscribe: vec![format!("{NAMESPACE}/{service}/0")],
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, receiver) = mpsc::channel(8);
        requests.send(first).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = timeout(LIMIT, client.delta_aggregated_resources(ReceiverStream::new(receiver))).await??;
        Ok(Stream { requests, responses: responses.into_inner() })
    }
}

impl Stream {
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
