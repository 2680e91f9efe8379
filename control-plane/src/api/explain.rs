//! `GET /weft/v1/explain?method=GET&url=http://catalog/items&from=NAMESPACE[/WORKLOAD]&header=NAME:VALUE...`

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Extension, RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri},
};
use serde_json::Value;

use super::{ApiState, Caller, access::rules::Asked, status::ApiError};
use crate::explain::{self, ExplainError, Question};

/// Answers which rule a request would follow, when the caller may look into the namespace of its service; `from` is
/// looked at before.
pub async fn get(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let question = question(query.as_deref().unwrap_or_default()).map_err(ApiError::bad_request)?;
    let view = state.pushed.view.borrow().clone();
    let resources = Arc::clone(&state.pushed.resources.borrow().resources);
    let registered = Arc::clone(&state.pushed.registered.borrow());
    // It decodes and matches for as long as there are workloads behind a rule: away from the streams, and few at once,
    // also when those who asked have gone.
    let permit = Arc::clone(&state.explains).try_acquire_owned().map_err(|_| ApiError::too_many("explanations"))?;
    let by = caller.clone();
    let answer = tokio::task::spawn_blocking(move || {
        let answer = explain::explain(&view, &resources, &registered, &question, &|namespace| by.sees(namespace));
        drop(permit);
        answer
    });
    let answer = answer
        .await
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string()))?;
    answer.map(Json).map_err(|error| match error {
        ExplainError::BadRequest(_) => ApiError::bad_request(error.to_string()),
        ExplainError::Hidden { namespace, name } => {
            let (verb, resource) = ("get".to_owned(), "services".to_owned());
            let asked = Asked::Resource { verb, resource, namespace: Some(namespace), name: Some(name) };
            ApiError::forbidden(&caller, &asked)
        }
        ExplainError::NoService { .. } | ExplainError::NoPort { .. } => {
            ApiError::new(StatusCode::NOT_FOUND, "NotFound", error.to_string())
        }
    })
}

fn question(query: &str) -> Result<Question, String> {
    let mut question = Question {
        method: Method::GET,
        url: Uri::default(),
        namespace: "default".to_owned(),
        from: None,
        headers: HeaderMap::new(),
        now: SystemTime::now(),
    };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |why: &str| format!("{name}={value}: {why}");
        match &*name {
            "method" => question.method = value.parse().map_err(|_| wrong("is no HTTP method"))?,
            "url" => question.url = value.parse().map_err(|error| wrong(&format!("is no URL: {error}")))?,
            "from" => {
                question.namespace = value.split('/').next().unwrap_or_default().to_owned();
                question.from = value.contains('/').then(|| value.to_string());
            }
            "header" => {
                let (key, text) = value.split_once(':').ok_or_else(|| wrong("expected NAME:VALUE"))?;
                let key = HeaderName::try_from(key.trim()).map_err(|_| wrong("is no header name"))?;
                let text = HeaderValue::from_str(text.trim()).map_err(|_| wrong("is no header value"))?;
                question.headers.append(key, text);
            }
            _ => return Err(wrong("unknown parameter; known: method, url, from, header")),
        }
    }
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_from_the_query() {
        let question =
            question("method=POST&url=http%3A%2F%2Fcatalog%2Fitems%3Fa%3Db&from=shop%2Fweb-1&header=x-user%3A%20beta")
                .expect("a question");
        assert_eq!((question.method, question.namespace.as_str()), (Method::POST, "shop"));
        assert_eq!(question.url, "http://catalog/items?a=b");
        assert_eq!(question.headers["x-user"], "beta");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, part) in
            [("methud=GET", "methud"), ("url=%20", "url"), ("header=x", "NAME:VALUE"), ("method=%20", "method")]
        {
            let error = question(query).expect_err(query);
            assert!(error.contains(part), "{error}");
        }
    }
}
