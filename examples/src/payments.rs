//! `payments`: a gRPC server with one unary method.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    proto::{
        AuthorizeRequest, AuthorizeResponse,
        payments_server::{Payments, PaymentsServer},
    },
    serve,
};

#[derive(Debug, Default)]
struct Desk {
    authorizations: AtomicU64,
}

#[tonic::async_trait]
impl Payments for Desk {
    async fn authorize(&self, request: Request<AuthorizeRequest>) -> Result<Response<AuthorizeResponse>, Status> {
        let request = request.into_inner();
        if request.amount_cents == 0 {
            return Err(Status::invalid_argument("amount_cents: 0: must be above zero"));
        }
        let authorization = self.authorizations.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Response::new(AuthorizeResponse { authorization }))
    }
}

/// Serves until the process ends.
pub async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    Server::builder()
        .add_service(PaymentsServer::new(Desk::default()))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}
