//! The mutating admission webhook (admission.k8s.io/v1): pods in, JSON patches out. What is wrong with a pod is told to
//! whoever makes it; a pod that cannot have a sidecar is let through with a warning, because the namespace asked and not
//! the pod.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    api::body::Sent,
    inject::{self, Done, INJECTED, Options, patch},
    source::{Problem, Reason},
};

const VERSION: &str = "admission.k8s.io/v1";
/// Kubernetes shows this many characters of a warning.
const WARNING: usize = 256;

/// The webhook at `/inject`, and `/healthz`.
pub fn router(options: Options) -> Router {
    let routes = Router::new().route("/inject", post(admit)).route("/healthz", get(|| async { "ok\n" }));
    routes.with_state(Arc::new(options))
}

async fn admit(State(options): State<Arc<Options>>, Sent(bytes): Sent) -> Response {
    let asked: Result<Value, _> = serde_json::from_slice(&bytes);
    match asked.map_err(|error| error.to_string()).and_then(|asked| review(&asked, &options)) {
        Ok(answer) => Json(answer).into_response(),
        Err(why) => {
            let text = format!("this takes an AdmissionReview of {VERSION}: {why}\n");
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

/// The answer to a review.
///
/// # Errors
/// When it is none.
pub fn review(asked: &Value, options: &Options) -> Result<Value, String> {
    if asked["apiVersion"] != VERSION || asked["kind"] != "AdmissionReview" {
        return Err(format!("apiVersion is {} and kind {}", asked["apiVersion"], asked["kind"]));
    }
    let request = &asked["request"];
    let uid = request["uid"].as_str().filter(|uid| !uid.is_empty() && uid.len() <= 256);
    let uid = uid.ok_or("request.uid is missing")?;
    let mut response = decided(request, options);
    response["uid"] = uid.into();
    Ok(json!({ "apiVersion": VERSION, "kind": "AdmissionReview", "response": response }))
}

fn decided(request: &Value, options: &Options) -> Value {
    let allowed = json!({ "allowed": true });
    let pod = &request["object"];
    let is_pod = request["kind"]["group"] == "" && request["kind"]["kind"] == "Pod" && pod.is_object();
    // What has one was injected before it came here.
    let has_one = pod.pointer("/metadata/annotations").is_some_and(|all| all.get(INJECTED).is_some());
    if !is_pod || request["operation"] != "CREATE" || has_one {
        return allowed;
    }
    let mut after = pod.clone();
    match inject::pod(&mut after, options) {
        Ok(Done::OptedOut) => allowed,
        Ok(Done::Injected) => {
            let patch = Value::Array(patch::diff(pod, &after)).to_string();
            json!({ "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch) })
        }
        Err(problem) if problem.reason == Reason::UnsupportedValue => {
            let warning: String = format!("weft: no sidecar: {}", told(&problem)).chars().take(WARNING).collect();
            json!({ "allowed": true, "warnings": [warning] })
        }
        Err(problem) => {
            let status = json!({ "code": 422, "reason": "Invalid", "message": format!("weft: {}", told(&problem)) });
            json!({ "allowed": false, "status": status })
        }
    }
}

fn told(problem: &Problem) -> String {
    let hint = if problem.hint.is_empty() { String::new() } else { format!(" ({})", problem.hint) };
    format!("{}: {}{hint}", problem.path, problem.message)
}

#[cfg(test)]
mod tests;
