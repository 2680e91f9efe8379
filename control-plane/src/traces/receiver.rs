//! The OTLP receiver: gRPC and protobuf over HTTP (`POST /v1/traces`) on one port, for sidecars and for apps that trace
//! themselves. Plain text, for loopback: who listens elsewhere runs a collector.

use std::time::Duration;

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::{Request as HttpRequest, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
    routing::post,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, service::Routes, transport::Server};

use super::{Traces, otlp};

/// One export.
const MAX_MESSAGE: usize = 8 << 20;
/// Requests of one connection at once.
const CONCURRENT: usize = 16;
const PROTOBUF: &str = "application/x-protobuf";
/// Of a whole export.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Serves for as long as the process lives.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, traces: Traces) -> anyhow::Result<()> {
    let service = TraceServiceServer::new(Receiver(traces.clone())).max_decoding_message_size(MAX_MESSAGE);
    let http = Router::new().route("/v1/traces", post(over_http)).with_state(traces);
    let routes = Routes::from(http).add_service(service);
    Server::builder()
        .accept_http1(true)
        .concurrency_limit_per_connection(CONCURRENT)
        .timeout(TIMEOUT)
        .max_concurrent_streams(u32::try_from(CONCURRENT).ok())
        .add_routes(routes)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

struct Receiver(Traces);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(take(&self.0, request.into_inner())))
    }
}

/// OTLP/HTTP in protobuf (OTLP specification, section on HTTP). JSON is not taken, and said so.
async fn over_http(State(traces): State<Traces>, request: HttpRequest) -> HttpResponse {
    let kind = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !kind.starts_with(PROTOBUF.as_bytes()) {
        let text = format!("expected Content-Type {PROTOBUF}\n");
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    }
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken\n").into_response();
    }
    let Ok(body) = to_bytes(request.into_body(), MAX_MESSAGE).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, format!("more than {MAX_MESSAGE} bytes\n")).into_response();
    };
    match ExportTraceServiceRequest::decode(body) {
        Ok(message) => {
            let answer = Bytes::from(take(&traces, message).encode_to_vec());
            ([(header::CONTENT_TYPE, PROTOBUF)], answer).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("no ExportTraceServiceRequest: {error}\n")).into_response(),
    }
}

fn take(traces: &Traces, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse {
    let (spans, refused) = otlp::spans(request);
    traces.add(spans);
    let partial = (refused > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(refused).unwrap_or(i64::MAX),
        error_message: "spans without a valid trace id and span id".into(),
    });
    ExportTraceServiceResponse { partial_success: partial }
}
