//! Ranges and contradictions of traffic settings. What passes here is merged and sent, and every sidecar accepts it.

use super::{Algorithm, HashOn, LoadBalancing, Retries, Timeouts, TrafficPolicySpec};
use crate::source::check::Check;

/// Checks the settings at `path`; the defaults of the mesh have the same.
pub fn traffic(spec: &TrafficPolicySpec, path: &str, check: &mut Check<'_>) {
    if let Some(given) = &spec.timeouts {
        timeouts(given, &format!("{path}.timeouts"), check);
    }
    if let Some(retries) = &spec.retries {
        retry(retries, &format!("{path}.retries"), check);
    }
    if let Some(balancing) = &spec.load_balancing {
        load_balancing(balancing, &format!("{path}.loadBalancing"), check);
    }
    if let Some(outlier) = &spec.outlier_detection {
        let path = format!("{path}.outlierDetection");
        check.percent(&format!("{path}.successPercent"), outlier.success_percent);
        check.percent(&format!("{path}.maxEjectedPercent"), outlier.max_ejected_percent);
        check.positive(&format!("{path}.minimumRequests"), outlier.minimum_requests);
        check.some_time(&format!("{path}.window"), outlier.window);
        check.some_time(&format!("{path}.baseEjection"), outlier.base_ejection);
        check.some_time(&format!("{path}.maxEjection"), outlier.max_ejection);
        check.ordered(&path, "baseEjection", outlier.base_ejection, "maxEjection", outlier.max_ejection);
    }
    if let Some(breaker) = &spec.circuit_breaker {
        let path = format!("{path}.circuitBreaker");
        check.some_time(&format!("{path}.baseOpen"), breaker.base_open);
        check.some_time(&format!("{path}.maxOpen"), breaker.max_open);
        check.ordered(&path, "baseOpen", breaker.base_open, "maxOpen", breaker.max_open);
        check.positive(&format!("{path}.consecutiveFailures"), breaker.consecutive_failures);
    }
    if let Some(limits) = &spec.limits {
        for (name, value) in
            [("connections", limits.connections), ("requests", limits.requests), ("pending", limits.pending)]
        {
            check.positive(&format!("{path}.limits.{name}"), value);
        }
        if limits.retries == Some(0) {
            let hint = "leave it out for the budget alone, or set retries.attempts to 0";
            check.wrong(&format!("{path}.limits.retries"), "0 is not a limit", hint);
        }
    }
    if let Some(connection) = &spec.connection {
        let path = format!("{path}.connection");
        check.some_time(&format!("{path}.idle"), connection.idle);
        check.some_time(&format!("{path}.maxAge"), connection.max_age);
        check.positive(&format!("{path}.maxStreams"), connection.max_streams);
    }
}

/// What a policy cannot set at a route: it belongs to the Service behind it, whichever route leads there.
pub fn of_a_route(spec: &TrafficPolicySpec, check: &mut Check<'_>) {
    let given = [
        ("timeouts.connect", spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.connect.is_some())),
        ("retries.budget", spec.retries.as_ref().is_some_and(|retries| retries.budget.is_some())),
        ("loadBalancing", spec.load_balancing.is_some()),
        ("limits", spec.limits.is_some()),
        ("outlierDetection", spec.outlier_detection.is_some()),
        ("circuitBreaker", spec.circuit_breaker.is_some()),
        ("connection", spec.connection.is_some()),
    ];
    for (name, _) in given.into_iter().filter(|(_, given)| *given) {
        let hint = "set it in a policy that targets the Service";
        check.wrong(&format!("spec.{name}"), "cannot be set at a route", hint);
    }
}

fn timeouts(timeouts: &Timeouts, path: &str, check: &mut Check<'_>) {
    check.span(&format!("{path}.request"), timeouts.request);
    check.span(&format!("{path}.backendRequest"), timeouts.backend_request);
    check.span(&format!("{path}.streamIdle"), timeouts.stream_idle);
    check.some_time(&format!("{path}.connect"), timeouts.connect);
    // 0s is none, which is not shorter than anything.
    let request = timeouts.request.filter(|request| !request.0.is_zero());
    check.ordered(path, "backendRequest", timeouts.backend_request, "timeouts.request", request);
}

fn load_balancing(balancing: &LoadBalancing, path: &str, check: &mut Check<'_>) {
    check.span(&format!("{path}.slowStart"), balancing.slow_start);
    let places = balancing.locality.as_deref().unwrap_or_default();
    if let Some(twice) = (1..places.len()).find(|index| places[..*index].contains(&places[*index])) {
        check.wrong(&format!("{path}.locality[{twice}]"), "is given twice", "remove one of them");
    }
    let path = format!("{path}.hashOn");
    let hashed = matches!(balancing.algorithm, Some(Algorithm::Maglev | Algorithm::RingHash));
    if hashed != balancing.hash_on.is_some() {
        let message = if hashed { "is missing" } else { "has no use with this algorithm" };
        check.wrong(&path, message, "hashOn goes with the algorithms RingHash and Maglev");
    }
    let Some(HashOn { header, cookie, query_param, source_ip }) = &balancing.hash_on else { return };
    let given = [header.is_some(), cookie.is_some(), query_param.is_some(), *source_ip == Some(true)];
    if given.into_iter().filter(|given| *given).count() != 1 {
        check.wrong(&path, "needs exactly one field", "one of header, cookie, queryParam, sourceIp");
    }
    if let Some(header) = header {
        check.header(&format!("{path}.header"), header);
    }
    if let Some(cookie) = cookie {
        // A cookie's name is a token, as a header's is (RFC 6265 section 4.1.1).
        check.header(&format!("{path}.cookie"), cookie);
    }
    if query_param.as_ref().is_some_and(String::is_empty) {
        check.wrong(&format!("{path}.queryParam"), "is empty", "the name of a query parameter");
    }
}

fn retry(retries: &Retries, path: &str, check: &mut Check<'_>) {
    if let Some(attempts) = retries.attempts.filter(|attempts| *attempts > 10) {
        check.wrong(&format!("{path}.attempts"), format!("{attempts} is too many"), "0 to 10");
    }
    for (index, code) in retries.codes.iter().flatten().enumerate() {
        if !(400..=599).contains(code) {
            let message = format!("{code} is not the status of a failure");
            check.wrong(&format!("{path}.codes[{index}]"), message, "400 to 599");
        }
    }
    for (index, code) in retries.grpc_codes.iter().flatten().enumerate() {
        check.one_of(&format!("{path}.grpcCodes[{index}]"), "gRPC code", code, &weft_policy::grpc::CODES);
    }
    if retries.methods.as_ref().is_some_and(Vec::is_empty) {
        let hint = "leave it out for the idempotent ones, or set attempts to 0";
        check.wrong(&format!("{path}.methods"), "is empty", hint);
    }
    for (index, method) in retries.methods.iter().flatten().enumerate() {
        check.method(&format!("{path}.methods[{index}]"), method);
    }
    if let Some(backoff) = &retries.backoff {
        check.span(&format!("{path}.backoff.min"), backoff.min);
        check.some_time(&format!("{path}.backoff.base"), backoff.base);
        check.some_time(&format!("{path}.backoff.max"), backoff.max);
        check.ordered(&format!("{path}.backoff"), "base", backoff.base, "max", backoff.max);
    }
    check.span(&format!("{path}.hedgeAfter"), retries.hedge_after);
    check.percent(&format!("{path}.budget.percent"), retries.budget.as_ref().and_then(|budget| budget.percent));
}
