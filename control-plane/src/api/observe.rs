//! `GET /weft/v1/stat` and `/weft/v1/edges`: what the sidecars count, asked for now. The sidecars are asked once for what
//! they counted since they started (`since=start`), or twice, `window` apart, for what happened in between; with
//! `watch=true` again every `interval`, one JSON document a line, each over at most the last `window`.

pub mod places;
pub mod tap;

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Extension, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use weft_policy::SpiffeId;
use weft_proto::{ResourceType, v1};

use self::places::Place;
use super::{ApiState, Caller, status::ApiError};
use crate::{
    observe::{
        Collected,
        histogram::float,
        table::{self, Edges, Numbers, Origin, Served},
    },
    push::View,
};

/// People who look at once, and with one token.
pub const LOOKING: (usize, usize) = (32, 8);
/// The shortest and the longest window, in seconds; the default of one answer, and of a watch.
const WINDOW: (u64, u64, u64, u64) = (1, 300, 1, 10);
/// The shortest and the longest time between two lines of a watch, in seconds; clients give up on silence of 30 s.
const INTERVAL: (u64, u64) = (1, 20);
/// Collections that are kept of one window.
const KEPT: u32 = 16;
/// The longest watch.
const LONGEST: Duration = Duration::from_secs(3600);

/// Query of `/weft/v1/stat` and `/weft/v1/edges`.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatQuery {
    /// `namespace/name` of a service.
    service: Option<String>,
    /// Services, and for edges also callers, of this namespace.
    namespace: Option<String>,
    /// Seconds, such as `10` or `10s`.
    window: Option<String>,
    /// `start`.
    since: Option<String>,
    watch: bool,
    /// Seconds between two lines.
    interval: Option<String>,
    /// Lines have `edges` beside `items`.
    edges: bool,
}

/// What of the numbers is shown.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Show {
    Services,
    Edges,
    Both,
}

/// A query that makes sense.
struct Wanted {
    show: Show,
    /// None: since the sidecars started.
    window: Option<Duration>,
    interval: Duration,
    service: Option<String>,
    namespace: Option<String>,
    caller: Caller,
}

/// GET `/weft/v1/stat`.
///
/// # Errors
/// 400 for a query that makes no sense, 429 when too many look.
pub async fn stat(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<StatQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let show = if query.edges { Show::Both } else { Show::Services };
    answer(state, query, caller, show).await
}

/// GET `/weft/v1/edges`.
///
/// # Errors
/// As of [`stat`].
pub async fn edges(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<StatQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    answer(state, query, caller, Show::Edges).await
}

async fn answer(state: ApiState, query: StatQuery, caller: Caller, show: Show) -> Result<Response, ApiError> {
    let place = state.looking.take(&caller.name).map_err(|full| full.error("readers of statistics"))?;
    let watch = query.watch;
    let wanted = wanted(query, caller, show)?;
    if watch {
        return Ok(watched(state, wanted, place));
    }
    let mut before = None;
    if let Some(window) = wanted.window {
        let first = state.observers.collect().await;
        sleep_until(first.at + window).await;
        before = Some(first);
    }
    let now = state.observers.collect().await;
    Ok(Json(wanted.show(&state, before.as_ref(), &now)).into_response())
}

fn wanted(query: StatQuery, caller: Caller, show: Show) -> Result<Wanted, ApiError> {
    let StatQuery { service, namespace, window, since, watch, interval, .. } = query;
    let since_start = match since.as_deref() {
        None => false,
        Some("start") if window.is_none() => true,
        Some("start") => return Err(ApiError::bad_request("since and window: only one of them may be given")),
        Some(other) => return Err(ApiError::bad_request(format!("since: {other:?} is not \"start\""))),
    };
    let (least, most, once, rolling) = WINDOW;
    let window = seconds("window", window.as_deref(), (least, most), if watch { rolling } else { once })?;
    let interval = seconds("interval", interval.as_deref(), INTERVAL, INTERVAL.0)?;
    if let Some(service) = &service
        && weft_policy::model::ObjectName::parse(service).is_none()
    {
        return Err(ApiError::bad_request(format!("service: {service:?} is not namespace/name")));
    }
    let window = (!since_start).then_some(window);
    Ok(Wanted { show, window, interval, service, namespace, caller })
}

fn seconds(field: &str, text: Option<&str>, (least, most): (u64, u64), default: u64) -> Result<Duration, ApiError> {
    let Some(text) = text else { return Ok(Duration::from_secs(default)) };
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok().filter(|number| (least..=most).contains(number));
    let refused = || ApiError::bad_request(format!("{field}: {text:?} is not {least}s to {most}s"));
    number.map(Duration::from_secs).ok_or_else(refused)
}

/// A line for each interval, until the client goes.
fn watched(state: ApiState, wanted: Wanted, place: Place) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        let _place = place;
        let end = Instant::now() + LONGEST;
        let mut before: VecDeque<Collected> = VecDeque::new();
        while Instant::now() < end {
            let now = state.observers.collect().await;
            let next = now.at + wanted.interval;
            if let Some(window) = wanted.window {
                forget(&mut before, now.at, window);
            }
            if wanted.window.is_none() || !before.is_empty() {
                let mut line = wanted.show(&state, before.front(), &now).to_string();
                line.push('\n');
                // One who reads nothing for that long is gone.
                let sent = timeout_at(next + Duration::from_secs(30), sender.send(Ok(line.into()))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            if let Some(window) = wanted.window {
                keep(&mut before, now, window);
            }
            tokio::select! {
                () = sleep_until(next) => {}
                () = sender.closed() => return,
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Leaves the oldest that is not older than the window, or the last one.
fn forget(before: &mut VecDeque<Collected>, now: Instant, window: Duration) {
    while before.len() > 1 && before.front().is_some_and(|old| now.duration_since(old.at) > window) {
        before.pop_front();
    }
}

/// Keeps a collection for later differences. Each is the numbers of the whole mesh, so there are few of them in a window.
fn keep(before: &mut VecDeque<Collected>, now: Collected, window: Duration) {
    if before.back().is_none_or(|last| now.at.duration_since(last.at) >= window / KEPT) {
        before.push_back(now);
    }
}

impl Wanted {
    fn show(&self, state: &ApiState, before: Option<&Collected>, now: &Collected) -> Value {
        let seconds = before.map(|before| now.at.duration_since(before.at).as_secs_f64());
        let served = served(&state.pushed.view.borrow());
        let all = table::edges(before, now, &served);
        let mut value = json!({
            "window": { "seconds": seconds.map(|seconds| rounded(seconds, 3)), "sinceStart": before.is_none() },
            "sidecars": { "counted": now.reports.len(), "silent": now.silent },
        });
        if self.show != Show::Edges {
            value["items"] = self.services(&all, seconds).into();
        }
        match self.show {
            Show::Services => {}
            Show::Edges => value["items"] = self.edges(&all, seconds).into(),
            Show::Both => value["edges"] = self.edges(&all, seconds).into(),
        }
        value
    }

    fn services(&self, edges: &Edges, seconds: Option<f64>) -> Vec<Value> {
        let services = table::services(edges);
        let shown = services.iter().filter(|(to, _)| {
            let (namespace, service) = parts(to);
            let asked = self.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
            self.caller.sees(namespace) && asked && self.service.as_ref().is_none_or(|wanted| wanted == service)
        });
        shown.map(|(to, numbers)| with(called(to), numbers, seconds)).collect()
    }

    fn edges(&self, edges: &Edges, seconds: Option<f64>) -> Vec<Value> {
        let shown = edges.iter().filter(|((from, to), _)| {
            let (namespace, service) = parts(to);
            let begins = match from {
                Origin::App { namespace, .. } => Some(namespace.as_str()),
                Origin::Outside => None,
            };
            let sees = self.caller.sees(namespace) || begins.is_some_and(|begins| self.caller.sees(begins));
            let asked = |wanted: &String| wanted == namespace || Some(wanted.as_str()) == begins;
            let service = self.service.as_ref().is_none_or(|wanted| wanted == service);
            sees && self.namespace.as_ref().is_none_or(asked) && service
        });
        shown
            .map(|((from, to), numbers)| {
                let mut value = json!({ "from": caller(from) });
                value["to"] = called(to);
                with(value, numbers, seconds)
            })
            .collect()
    }
}

/// Namespace, and `namespace/name`, of `namespace/name:port`.
fn parts(to: &str) -> (&str, &str) {
    let service = to.rsplit_once(':').map_or(to, |(service, _)| service);
    (service.split_once('/').map_or("", |(namespace, _)| namespace), service)
}

/// A called service port.
fn called(to: &str) -> Value {
    let (namespace, service) = parts(to);
    let port = to.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let name = service.split_once('/').map_or(service, |(_, name)| name);
    json!({ "service": to, "namespace": namespace, "name": name, "port": port })
}

fn caller(from: &Origin) -> Value {
    match from {
        Origin::Outside => json!({ "outside": true }),
        Origin::App { namespace, name, identity } => {
            let id = SpiffeId::parse(identity).ok();
            let account = id.as_ref().and_then(SpiffeId::namespace_and_account).map(|(_, account)| account);
            json!({ "namespace": namespace, "name": name, "serviceAccount": account, "identity": identity })
        }
    }
}

fn with(mut value: Value, of: &Numbers, seconds: Option<f64>) -> Value {
    let share = |part: u64, all: u64| (all > 0).then(|| rounded(float(part) / float(all), 6));
    let succeeded = of.requests.saturating_sub(of.failed);
    let quantile = |part| of.durations.quantile_ms(part).map(|ms| rounded(ms, 3));
    let rate = seconds.filter(|seconds| *seconds > 0.0).map(|seconds| rounded(float(of.requests) / seconds, 3));
    let numbers = json!({
        "requests": of.requests, "failed": of.failed, "successRate": share(succeeded, of.requests),
        "requestsPerSecond": rate,
        "latencyMs": { "p50": quantile(0.5), "p95": quantile(0.95), "p99": quantile(0.99) },
        "secured": of.secured[0], "plaintext": of.secured[1],
        "mtlsShare": share(of.secured[0], of.secured[0].saturating_add(of.secured[1])),
        "retries": of.retries, "tries": of.tries(), "actualSuccessRate": share(succeeded, of.tries()),
        "tcp": {
            "open": of.open, "closed": of.closed, "failed": of.broken,
            "sentBytes": of.bytes[0], "receivedBytes": of.bytes[1],
        },
    });
    if let (Some(fields), Value::Object(numbers)) = (value.as_object_mut(), numbers) {
        fields.extend(numbers);
    }
    value
}

fn rounded(number: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (number * scale).round() / scale
}

/// Which service ports each workload serves at which port of its app.
fn served(view: &View) -> Served {
    let mut served = Served::default();
    for resource in view.all(ResourceType::EndpointSlice, "") {
        let bytes = resource.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        let Ok(slice) = v1::EndpointSlice::decode(bytes) else { continue };
        for endpoint in slice.endpoints.into_iter().filter(|endpoint| !endpoint.workload.is_empty()) {
            for (port, at) in endpoint.ports {
                served.insert(&endpoint.workload, at, format!("{}:{port}", slice.service));
            }
        }
    }
    served
}

#[cfg(test)]
mod tests;
