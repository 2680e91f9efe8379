//! `GET /weft/v1/tap`: requests as they end, one JSON document a line. Paths may tell much, so this has a role of its
//! own, and each tap is in the audit log. A reader that is slow misses requests, which are counted; nothing waits for it.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use weft_policy::SpiffeId;
use weft_proto::v1::{Direction, TapFilter, TappedRequest};

use super::super::{
    ApiState, Caller,
    access::{Peer, rules::Role},
    status::ApiError,
};
use crate::observe::{
    PATIENCE,
    taps::{Reader, Seen, TAPS, Wish},
};

/// Taps at once, and with one token.
pub const TAPPING: (usize, usize) = (TAPS, 4);
/// The longest tap in seconds, and the default.
const LONGEST: u64 = 600;
/// Requests in one second, of each sidecar: the default and the most.
const RATE: (u32, u32) = (100, 1000);
/// Requests in all.
const LIMIT: u64 = 1_000_000;
/// A line comes at least so often, so that nobody takes a quiet tap for a dead one.
const STATUS: Duration = Duration::from_secs(5);
/// Lines that wait for the client beside those of the tap itself.
const LINES: usize = 16;
/// Bytes of a text of a filter.
const TEXT: usize = 2048;

/// Query of `/weft/v1/tap`.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct TapQuery {
    /// `namespace/name` of the called service.
    service: Option<String>,
    /// Namespace of the workloads whose sidecars see the requests.
    namespace: Option<String>,
    method: Option<String>,
    /// Beginning of the path.
    path: Option<String>,
    /// `503`, `5xx` or `500-504`.
    status: Option<String>,
    /// The other end: a SPIFFE id, or `namespace/service-account`.
    peer: Option<String>,
    /// `inbound` or `outbound`.
    direction: Option<String>,
    /// Ends the tap after so many requests.
    limit: Option<u64>,
    timeout_seconds: Option<u64>,
    /// Requests in one second, of each sidecar.
    max_rate: Option<u32>,
    /// Query strings too; for administrators.
    query: bool,
}

/// GET `/weft/v1/tap`. Lines are of the types `STARTED`, `REQUEST`, `STATUS` and `ENDED`.
///
/// # Errors
/// 400 for a query that makes no sense, 403 for a wish beyond the role, 429 when there are too many taps.
pub async fn tap(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    peer: Option<Extension<Peer>>,
    query: Result<Query<TapQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let told = format!("{query:?}");
    if query.query && caller.role != Role::Admin {
        return Err(state.access.refuse_query(&caller, peer.map(|Extension(peer)| peer)));
    }
    let limit = query.limit.unwrap_or(LIMIT);
    let seconds = query.timeout_seconds.unwrap_or(LONGEST);
    if !(1..=LIMIT).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit: {limit} is not 1 to {LIMIT}")));
    }
    if !(1..=LONGEST).contains(&seconds) {
        return Err(ApiError::bad_request(format!("timeoutSeconds: {seconds} is not 1 to {LONGEST}")));
    }
    let domain = state.ca.as_ref().map(|ca| ca.trust_domain());
    let wish = wish(query, &caller, domain)?;
    let place = state.tapping.take(&caller.name).map_err(|full| full.error("taps"))?;
    let reader = state.observers.tap(wish).ok_or_else(|| ApiError::too_many("taps"))?;
    tracing::info!(target: "audit", user = caller.name, role = %caller.role, tap = told, "tap begun");
    let (sender, receiver) = mpsc::channel(LINES);
    let until = Instant::now() + Duration::from_secs(seconds);
    let serving = Serving { reader, sender, shown: 0, limit, until };
    tokio::spawn(async move {
        let _place = place;
        let (shown, dropped) = serving.run().await;
        tracing::info!(target: "audit", user = caller.name, shown, dropped, "tap ended");
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The wish in the terms of the sidecars, within what the caller may see.
fn wish(query: TapQuery, caller: &Caller, domain: Option<&str>) -> Result<Wish, ApiError> {
    let refused =
        |field: &str, value: &str, what: &str| Err(ApiError::bad_request(format!("{field}: {value:?} is not {what}")));
    let texts = [&query.service, &query.namespace, &query.method, &query.path, &query.status, &query.peer];
    if texts.into_iter().flatten().any(|text| text.len() > TEXT) {
        return Err(ApiError::bad_request(format!("a filter is longer than {TEXT} bytes")));
    }
    let mut filter = TapFilter::default();
    if let Some(service) = query.service {
        if weft_policy::model::ObjectName::parse(&service).is_none() {
            return refused("service", &service, "namespace/name");
        }
        filter.service = service;
    }
    filter.method = query.method.unwrap_or_default().to_ascii_uppercase();
    if let Some(path) = query.path {
        if !path.starts_with('/') {
            return refused("path", &path, "the beginning of a path, such as /items");
        }
        filter.path_prefix = path;
    }
    if let Some(status) = query.status {
        let Some((from, to)) = status_range(&status) else {
            return refused("status", &status, "a status, a class or a range, such as 503, 5xx or 500-504");
        };
        (filter.status_from, filter.status_to) = (from, to);
    }
    if let Some(peer) = query.peer {
        let account = |domain: &str| {
            let (namespace, account) = peer.split_once('/')?;
            SpiffeId::workload(domain, namespace, account)
        };
        let id = SpiffeId::parse(&peer).ok().or_else(|| domain.and_then(account));
        let Some(id) = id else { return refused("peer", &peer, "a SPIFFE id or namespace/service-account") };
        filter.peer = id.to_string();
    }
    let direction = match query.direction.as_deref() {
        None => Direction::Unspecified,
        Some("inbound") => Direction::Inbound,
        Some("outbound") => Direction::Outbound,
        Some(other) => return refused("direction", other, "inbound or outbound"),
    };
    filter.direction = direction.into();
    let per_second = query.max_rate.unwrap_or(RATE.0);
    if !(1..=RATE.1).contains(&per_second) {
        return refused("maxRate", &per_second.to_string(), &format!("1 to {}", RATE.1));
    }
    // Whatever is asked for: a token of a namespace sees what the sidecars of that namespace see. The check of access
    // has refused another one already.
    let namespace = caller.namespace.clone().or(query.namespace);
    Ok(Wish { filter, namespace, per_second, query: query.query })
}

fn status_range(text: &str) -> Option<(u32, u32)> {
    let one = |text: &str| text.parse().ok().filter(|status| (100..=999).contains(status) && text.len() == 3);
    if let Some(class) = text.strip_suffix("xx") {
        let class: u32 = class.parse().ok().filter(|class| (1..=5).contains(class))?;
        return Some((class * 100, class * 100 + 99));
    }
    match text.split_once('-') {
        Some((from, to)) => Some((one(from)?, one(to)?)).filter(|(from, to)| from <= to),
        None => one(text).map(|status| (status, status)),
    }
}

struct Serving {
    reader: Reader,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    shown: u64,
    limit: u64,
    until: Instant,
}

impl Serving {
    /// Until the limit or the time is reached or the client goes: how many were shown, and dropped.
    async fn run(mut self) -> (u64, u64) {
        let why = self.serve().await;
        if let Some(why) = why {
            let line = json!({ "type": "ENDED", "reason": why, "shown": self.shown, "dropped": self.reader.dropped() });
            _ = self.send(&line).await;
        }
        (self.shown, self.reader.dropped())
    }

    /// Why it ended; none when nobody reads any more.
    async fn serve(&mut self) -> Option<&'static str> {
        let (sidecars, silent) = self.reader.begun(PATIENCE).await;
        if !self.send(&json!({ "type": "STARTED", "sidecars": sidecars, "silent": silent })).await {
            return None;
        }
        let mut status = interval_at(Instant::now() + STATUS, STATUS);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.shown < self.limit {
            let line = tokio::select! {
                seen = self.reader.next() => {
                    self.shown += 1;
                    line(&seen?)
                }
                _ = status.tick() => {
                    let (sidecars, silent) = self.reader.sidecars();
                    let (shown, dropped) = (self.shown, self.reader.dropped());
                    json!({ "type": "STATUS", "sidecars": sidecars, "silent": silent, "shown": shown, "dropped": dropped })
                }
                () = sleep_until(self.until) => return Some("timeout"),
                () = self.sender.closed() => return None,
            };
            if !self.send(&line).await {
                return None;
            }
        }
        Some("limit")
    }

    /// Waits for a slow client, but not beyond the end of the tap.
    async fn send(&self, line: &Value) -> bool {
        let mut text = line.to_string();
        text.push('\n');
        matches!(timeout_at(self.until + STATUS, self.sender.send(Ok(text.into()))).await, Ok(Ok(())))
    }
}

fn line(Seen { workload, request }: &Seen) -> Value {
    let TappedRequest { method, authority, path, status, grpc_status, duration_us, attempts, .. } = request;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let millis = i64::try_from(request.started_ms).unwrap_or(i64::MAX);
    let time = Timestamp::from_millisecond(millis).map(|time| format!("{time:.3}")).ok();
    let direction = match request.direction() {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
        Direction::Unspecified => "unknown",
    };
    json!({
        "type": "REQUEST", "time": time, "direction": direction,
        "workload": { "namespace": workload.namespace, "name": workload.name, "app": workload.app,
            "identity": workload.identity },
        "peer": { "identity": text(&request.peer), "address": text(&request.peer_address) },
        "mtls": !request.peer.is_empty(),
        "service": text(&request.service), "method": method, "authority": authority, "path": path,
        "status": (*status > 0).then_some(status), "grpcStatus": grpc_status, "reason": text(&request.reason),
        "durationUs": duration_us, "attempts": attempts, "route": text(&request.route),
        "protocol": if request.http_version == 2 { "HTTP/2" } else { "HTTP/1.1" }, "traceId": text(&request.trace_id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, namespace: Option<&str>) -> Caller {
        Caller { name: "x".into(), role, namespace: namespace.map(str::to_owned) }
    }

    #[test]
    fn a_status_is_a_number_a_class_or_a_range() {
        for (text, expected) in [
            ("503", Some((503, 503))),
            ("5xx", Some((500, 599))),
            ("500-504", Some((500, 504))),
            ("504-500", None),
            ("6xx", None),
            ("0xx", None),
            ("99", None),
            ("+50", None),
            ("", None),
        ] {
            assert_eq!(status_range(text), expected, "{text}");
        }
    }

    #[test]
    fn a_token_of_a_namespace_sees_what_its_sidecars_see_whatever_it_asks_for() {
        let query = || TapQuery { namespace: Some("bank".into()), ..TapQuery::default() };
        let own = wish(query(), &caller(Role::Observer, Some("shop")), None).expect("a wish");
        assert_eq!(own.namespace.as_deref(), Some("shop"));
        let all = wish(query(), &caller(Role::Observer, None), None).expect("a wish");
        assert_eq!(all.namespace.as_deref(), Some("bank"));
    }

    #[test]
    fn filters_that_make_no_sense_are_refused_by_name() {
        let query = TapQuery::default;
        for (field, query) in [
            ("service", TapQuery { service: Some("a b".into()), ..query() }),
            ("path", TapQuery { path: Some("items".into()), ..query() }),
            ("status", TapQuery { status: Some("many".into()), ..query() }),
            ("peer", TapQuery { peer: Some("http://x".into()), ..query() }),
            ("direction", TapQuery { direction: Some("up".into()), ..query() }),
            ("maxRate", TapQuery { max_rate: Some(RATE.1 + 1), ..query() }),
            ("a filter", TapQuery { path: Some(format!("/{}", "x".repeat(TEXT))), ..query() }),
        ] {
            let refused = wish(query, &caller(Role::Admin, None), Some("weft.local")).expect_err(field);
            assert!(refused.to_json()["message"].as_str().is_some_and(|text| text.starts_with(field)), "{refused:?}");
        }
        let short = TapQuery { peer: Some("shop/web".into()), method: Some("get".into()), ..query() };
        let filter = wish(short, &caller(Role::Admin, None), Some("weft.local")).expect("a wish").filter;
        assert_eq!((filter.peer.as_str(), filter.method.as_str()), ("spiffe://weft.local/ns/shop/sa/web", "GET"));
    }
}
