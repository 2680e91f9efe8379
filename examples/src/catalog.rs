//! `catalog`: lists items over HTTP/1.1 and says which version and replica answered.

use std::{net::SocketAddr, sync::Arc};

use http::{Method, StatusCode};

use crate::serve;

/// Serves until the process ends. `version` and `replica` are in each answer.
pub async fn run(listen: SocketAddr, version: &str, replica: &str) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    let answer = Arc::new(serde_json::json!({
        "version": version,
        "replica": replica,
        "items": ["linen", "wool", "silk"],
    }));
    serve::http(listener, move |request| {
        let answer = answer.clone();
        async move {
            Ok(match (request.method(), request.uri().path()) {
                (&Method::GET, "/items") => serve::json(StatusCode::OK, &answer),
                _ => serve::not_found(),
            })
        }
    })
    .await
}
