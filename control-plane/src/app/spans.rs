//! Whether this control plane keeps spans, and where they come in.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

use crate::{
    config::ControlPlaneArgs,
    traces::{Traces, receiver},
};

/// OTLP over gRPC, as every collector and Jaeger have it.
const OTLP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4317);

/// Starts the receiver; `None` where nobody asked for one, or a collector is there already.
///
/// # Errors
/// When the address that was asked for cannot be listened on.
pub async fn receive(args: &ControlPlaneArgs) -> Result<Option<Traces>> {
    let listener = match (args.otlp_listen, args.dev) {
        (Some(address), _) => TcpListener::bind(address).await.with_context(|| format!("--otlp-listen {address}"))?,
        (None, false) => return Ok(None),
        (None, true) => match TcpListener::bind(OTLP).await {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::info!(otlp = %OTLP, "something listens there already, perhaps Jaeger: no spans are kept here");
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("listen on {OTLP}")),
        },
    };
    let traces = Traces::default();
    tracing::info!(otlp = %listener.local_addr()?, "spans are kept in memory; weft trace shows them");
    let kept = traces.clone();
    tokio::spawn(async move {
        if let Err(error) = receiver::serve(listener, kept).await {
            tracing::error!(error = format!("{error:#}"), "no more spans are taken");
        }
    });
    Ok(Some(traces))
}
