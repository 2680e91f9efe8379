//! `weft.identity.v1.Identity`: who may get which certificate. The current certificate (that identity only), a join
//! token, a Kubernetes service account token, or the development token (any identity).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq;
use tonic::{Request, Response, Status};
use weft_policy::SpiffeId;
use weft_proto::identity::{
    SignCertificateRequest, SignCertificateResponse,
    identity_server::{Identity, IdentityServer},
};
use weft_svid::PeerIdentity;
use zeroize::Zeroizing;

use super::{
    Ca, Presented,
    audit::{Credential, Issued},
    enrolment::{
        Enrolment,
        attested::Attested,
        check_csr,
        joins::{self, JoinToken},
        refusal::{Reason, Refusal},
        review::{MAX_TOKEN, Reviewer},
    },
};

/// Bytes of a request: a signing request and two names.
const MAX_REQUEST: usize = 16 * 1024;
/// Nobody gets a shorter life, unless the authority's own is shorter.
const MIN_LIFE: Duration = Duration::from_secs(5);

/// What the TLS session says of the caller; an extension of every request on the discovery port.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Identity by client certificate.
    pub identity: Option<PeerIdentity>,
    /// What that certificate says beside it.
    pub presented: Option<Arc<Presented>>,
    /// What that certificate attests of the workload.
    pub attested: Attested,
    /// Where it comes from.
    pub address: SocketAddr,
}

/// The service. Clones share what it keeps.
#[derive(Clone)]
pub struct IdentityService {
    /// The authority.
    pub ca: Arc<Ca>,
    /// The development token; `None`: it is off.
    pub token: Option<Arc<Zeroizing<String>>>,
    /// Join tokens, limits and records.
    pub enrolment: Enrolment,
    /// Who knows Kubernetes tokens; `None`: they are off.
    pub reviewer: Option<Reviewer>,
}

/// What was issued, for the answer and the record.
struct Certified {
    chain: Vec<CertificateDer<'static>>,
    /// What the chain says.
    read: Presented,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn sign_certificate(
        &self,
        request: Request<SignCertificateRequest>,
    ) -> Result<Response<SignCertificateResponse>, Status> {
        let Some(peer) = request.extensions().get::<PeerInfo>().cloned() else {
            return Err(Status::internal("the connection says nothing of its peer"));
        };
        let mut all = request.metadata().get_all("authorization").iter();
        let bearer = match (all.next(), all.next()) {
            (Some(value), None) => value.to_str().ok().map(|text| Zeroizing::new(text.to_owned())),
            _ => None,
        };
        let message = request.into_inner();
        let asked = format!("{}/{}", message.namespace, message.service_account);
        let by = credential(&peer, bearer.as_ref().map(|text| text.as_str()));
        let certified = async {
            self.enrolment.admit(peer.address)?;
            let id = SpiffeId::workload(self.ca.trust_domain(), &message.namespace, &message.service_account);
            let no_id = || Refusal::new(Reason::WrongIdentity, "namespace and service_account make no SPIFFE id");
            let id = id.ok_or_else(no_id)?;
            if Some(&id) == weft_svid::control_plane_id(self.ca.trust_domain()).as_ref() {
                let text = "the control plane's own identity is not issued";
                return Err(Refusal::new(Reason::WrongIdentity, text));
            }
            self.issue(&peer, bearer, &id, message).await.map(|certified| (id, certified))
        };
        let refused = |refusal| self.enrolment.refused(refusal, &asked, by, peer.address);
        let (id, Certified { chain, read }) = certified.await.map_err(refused)?;
        let end = Duration::from_secs(u64::try_from(read.not_after).unwrap_or_default());
        self.enrolment.audit().issued(&Issued {
            identity: &id,
            serial: &read.serial(),
            not_after: SystemTime::UNIX_EPOCH + end,
            by,
            from: Some(peer.address),
        });
        Ok(Response::new(SignCertificateResponse {
            chain: chain.into_iter().map(|der| der.to_vec().into()).collect(),
            roots: self.ca.roots().into_iter().map(Into::into).collect(),
            trust_domain: self.ca.trust_domain().into(),
        }))
    }
}

impl IdentityService {
    /// As a gRPC service, with its limit on the size of requests.
    #[must_use]
    pub fn server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    /// Checks what the caller presents, and issues.
    async fn issue(
        &self,
        peer: &PeerInfo,
        bearer: Option<Zeroizing<String>>,
        id: &SpiffeId,
        message: SignCertificateRequest,
    ) -> Result<Certified, Refusal> {
        if let Some(current) = &peer.identity {
            renewable(current, id, SystemTime::now())?;
            // A renewal says no more and no less of its workload than the certificate before.
            let certified = self.sign(&message, id, &peer.attested)?;
            // The call may have begun long before its body came: what is not trusted any more gets nothing.
            if let Some(why) = peer.presented.as_ref().and_then(|presented| self.ca.refuses(&current.id, presented)) {
                let text = format!("the certificate is not accepted any more ({why}): a new one needs a token");
                return Err(Refusal::new(Reason::Revoked, text));
            }
            return Ok(certified);
        }
        let missing = || Refusal::new(Reason::Missing, "neither a token nor a certificate was presented");
        let token = bearer.as_ref().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(missing)?;
        if token.starts_with(joins::PREFIX) {
            let verified = self.enrolment.joins().verify(token)?;
            return self.join(verified, id.clone(), message).await;
        }
        if is_jwt(token) {
            return self.review(token, peer.address, id, &message).await;
        }
        match &self.token {
            Some(own) if bool::from(own.as_bytes().ct_eq(token.as_bytes())) => {
                self.sign(&message, id, &Attested::default())
            }
            _ => Err(Refusal::new(Reason::Invalid, "the token is not valid here")),
        }
    }

    /// For a join token, whose use is recorded with the issue.
    async fn join(
        &self,
        token: JoinToken,
        id: SpiffeId,
        message: SignCertificateRequest,
    ) -> Result<Certified, Refusal> {
        if !token.is_of(&id) {
            let JoinToken { id: token, namespace, service_account, .. } = &token;
            let text = format!(
                "the token {token} is for namespace {namespace:?} and service account {service_account:?}, not for {id}"
            );
            return Err(Refusal::new(Reason::WrongIdentity, text));
        }
        let key = check_csr(&message.csr, &id).map_err(csr)?;
        self.enrolment.admit_identity(&id)?;
        let service = self.clone();
        // The commit waits for the disk.
        let redeem = move || {
            let sign = |token: &JoinToken| {
                let chain = service.certificate(&message, &id, &token.attested)?;
                Ok((read(&chain)?.serial(), chain))
            };
            service.enrolment.joins().redeem(&token, &key, Timestamp::now(), sign)
        };
        let redeemed = tokio::task::spawn_blocking(redeem).await;
        let ended = |error: tokio::task::JoinError| Refusal::new(Reason::Store, error.to_string());
        let redeemed = redeemed.map_err(ended)??;
        let (token, again) = (redeemed.token.id, redeemed.again);
        tracing::info!(target: "weft::audit", token, again, "join token used");
        Ok(Certified { read: read(&redeemed.chain)?, chain: redeemed.chain })
    }

    /// For a token of Kubernetes, which says whose it is.
    async fn review(
        &self,
        token: &str,
        address: SocketAddr,
        id: &SpiffeId,
        message: &SignCertificateRequest,
    ) -> Result<Certified, Refusal> {
        let off = || {
            let text = "tokens of Kubernetes are not taken here: start the control plane with --kubernetes-api";
            Refusal::new(Reason::Invalid, text)
        };
        let reviewer = self.reviewer.as_ref().ok_or_else(off)?;
        self.enrolment.admit_costly(address)?;
        let account = reviewer.review(token).await?;
        if id.namespace_and_account() != Some((&account.namespace, &account.name)) {
            let text = format!(
                "the token is of service account {:?} in namespace {:?}, not of {id}",
                account.name, account.namespace
            );
            return Err(Refusal::new(Reason::WrongIdentity, text));
        }
        self.sign(message, id, &Attested::default())
    }

    fn sign(&self, message: &SignCertificateRequest, id: &SpiffeId, attested: &Attested) -> Result<Certified, Refusal> {
        check_csr(&message.csr, id).map_err(csr)?;
        self.enrolment.admit_identity(id)?;
        let chain = self.certificate(message, id, attested)?;
        Ok(Certified { read: read(&chain)?, chain })
    }

    /// A chain for a request that was checked.
    fn certificate(
        &self,
        message: &SignCertificateRequest,
        id: &SpiffeId,
        attested: &Attested,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let wish = message.lifetime.and_then(|lifetime| Duration::try_from(lifetime).ok());
        let wish = wish.map(|lifetime| lifetime.max(MIN_LIFE));
        let leaf = self.ca.issue(&message.csr, id, attested, wish).map_err(|error| csr(format!("{error:#}")))?;
        Ok(leaf.chain)
    }
}

/// How the caller wants to be known.
fn credential(peer: &PeerInfo, bearer: Option<&str>) -> Credential {
    match (&peer.identity, bearer.and_then(|text| text.strip_prefix("Bearer "))) {
        (Some(_), _) => Credential::Certificate,
        (None, Some(token)) if token.starts_with(joins::PREFIX) => Credential::JoinToken,
        (None, Some(token)) if is_jwt(token) => Credential::KubernetesToken,
        (None, Some(_)) => Credential::DevToken,
        (None, None) => Credential::None,
    }
}

fn read(chain: &[CertificateDer<'_>]) -> Result<Presented, Refusal> {
    Presented::of(chain).ok_or_else(|| csr("the certificate that was made cannot be read".into()))
}

/// Whether a certificate may be exchanged for a new one of `id`. TLS checked it when the connection began, which may be
/// long ago.
fn renewable(current: &PeerIdentity, id: &SpiffeId, now: SystemTime) -> Result<(), Refusal> {
    if current.id != *id {
        let text = format!("{} may not get a certificate for {id}", current.id);
        return Err(Refusal::new(Reason::WrongIdentity, text));
    }
    if current.not_after <= now {
        let text = "the certificate of this connection has ended: enrol with a token";
        return Err(Refusal::new(Reason::CertificateExpired, text));
    }
    Ok(())
}

fn csr(why: String) -> Refusal {
    Refusal::new(Reason::Csr, format!("certificate signing request: {why}"))
}

/// Three parts in base64url: what Kubernetes gives its pods.
fn is_jwt(token: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    token.len() <= MAX_TOKEN && token.split('.').count() == 3 && token.split('.').all(part)
}

#[cfg(test)]
mod tests;
