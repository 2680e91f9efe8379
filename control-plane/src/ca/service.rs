//! `weft.identity.v1.Identity`: who may get which certificate. A token (development: any identity) or the current
//! certificate (that identity only).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use weft_policy::SpiffeId;
use weft_proto::identity::{SignCertificateRequest, SignCertificateResponse, identity_server::Identity};
use weft_svid::PeerIdentity;
use zeroize::Zeroizing;

use super::{Ca, Presented};

/// What the TLS session says of the caller; an extension of every request on the discovery port.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Identity by client certificate.
    pub identity: Option<PeerIdentity>,
    /// What that certificate says beside it.
    pub presented: Option<Arc<Presented>>,
    /// Where it comes from.
    pub address: SocketAddr,
}

/// The service.
pub struct IdentityService {
    /// The authority.
    pub ca: Arc<Ca>,
    /// The development token; `None`: tokens are off.
    pub token: Option<Zeroizing<String>>,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn sign_certificate(
        &self,
        request: Request<SignCertificateRequest>,
    ) -> Result<Response<SignCertificateResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let message = request.into_inner();
        let id = SpiffeId::workload(self.ca.trust_domain(), &message.namespace, &message.service_account)
            .ok_or_else(|| Status::invalid_argument("namespace and service_account make no SPIFFE id"))?;
        let current = peer.as_ref().and_then(|peer| peer.identity.as_ref());
        match (current, bearer) {
            (Some(current), _) if current.id == id => {}
            (Some(current), _) => {
                return Err(Status::permission_denied(format!("{} may not get a certificate for {id}", current.id)));
            }
            (None, Some(bearer)) if self.token_is(&bearer) => {}
            (None, Some(_)) => return Err(Status::unauthenticated("the token is not valid here")),
            (None, None) => return Err(Status::unauthenticated("neither a token nor a certificate was presented")),
        }
        if Some(&id) == weft_svid::control_plane_id(self.ca.trust_domain()).as_ref() {
            return Err(Status::permission_denied("the control plane's own identity is not issued"));
        }
        let lifetime = message.lifetime.and_then(|lifetime| Duration::try_from(lifetime).ok());
        let leaf = self.ca.issue(&message.csr, &id, lifetime).map_err(|error| {
            tracing::warn!(%id, error = format!("{error:#}"), "certificate refused");
            Status::invalid_argument(format!("{error:#}"))
        })?;
        tracing::info!(%id, from = ?peer.map(|peer| peer.address), "certificate issued");
        Ok(Response::new(SignCertificateResponse {
            chain: vec![leaf.to_vec().into()],
            roots: self.ca.roots().into_iter().map(Into::into).collect(),
            trust_domain: self.ca.trust_domain().into(),
        }))
    }
}

impl IdentityService {
    /// Compares in a time that does not depend on where the texts differ.
    fn token_is(&self, bearer: &str) -> bool {
        let (Some(token), Some(given)) = (&self.token, bearer.strip_prefix("Bearer ")) else { return false };
        let (token, given) = (token.as_bytes(), given.as_bytes());
        token.len() == given.len() && token.iter().zip(given).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}
