//! How requests are made: timeouts and retries, merged.

use std::time::Duration;

use http::Method;
use weft_policy::{model::RequestPolicy, retry::IDEMPOTENT};
use weft_proto::v1;

use super::{Given, Layers, Row, ordered, text, text_or_none, wire};
use crate::source::policies::{
    Span,
    traffic::{Backoff, Retries, Timeouts, TrafficPolicySpec},
};

/// What is in force for the requests of one rule, or of a port without routes.
#[derive(Debug)]
pub struct Requests<'a> {
    request: Given<'a, Option<Duration>>,
    backend_request: Given<'a, Option<Duration>>,
    stream_idle: Given<'a, Option<Duration>>,
    attempts: Given<'a, u32>,
    codes: Given<'a, Vec<u32>>,
    grpc_codes: Given<'a, Vec<u32>>,
    /// Empty: the idempotent ones.
    methods: Given<'a, Vec<String>>,
    backoff_min: Given<'a, Duration>,
    backoff_base: Given<'a, Duration>,
    backoff_max: Given<'a, Duration>,
    hedge_after: Given<'a, Option<Duration>>,
}

/// 0s is how "none" is written.
fn unless_zero(span: Span) -> Option<Duration> {
    Some(span.0).filter(|time| !time.is_zero())
}

impl<'a> Requests<'a> {
    pub(super) fn merge(layers: &Layers<'a>) -> Self {
        let RequestPolicy { timeout, backend_timeout, stream_idle, retry: default, faults: _ } =
            RequestPolicy::default();
        let timeouts = |get: fn(&Timeouts) -> Option<Span>, default| {
            layers.pick(default, |spec| spec.timeouts.as_ref().and_then(get).map(unless_zero))
        };
        let backoff = |get: fn(&Backoff) -> Option<Span>, default| {
            layers.pick(default, |spec| Some(get(retries(spec)?.backoff.as_ref()?)?.0))
        };
        let mut merged = Self {
            request: timeouts(|timeouts| timeouts.request, timeout),
            backend_request: timeouts(|timeouts| timeouts.backend_request, backend_timeout),
            stream_idle: timeouts(|timeouts| timeouts.stream_idle, stream_idle),
            attempts: layers.pick(default.attempts, |spec| retries(spec)?.attempts),
            codes: layers.pick(default.codes.iter().map(|code| code.as_u16().into()).collect(), |spec| {
                Some(retries(spec)?.codes.as_ref()?.iter().copied().map(u32::from).collect())
            }),
            grpc_codes: layers.pick(default.grpc_codes.iter().copied().map(u32::from).collect(), |spec| {
                Some(
                    retries(spec)?
                        .grpc_codes
                        .as_ref()?
                        .iter()
                        .filter_map(|name| weft_policy::grpc::code(name))
                        .collect(),
                )
            }),
            methods: layers.pick(Vec::new(), |spec| retries(spec)?.methods.clone()),
            backoff_min: backoff(|backoff| backoff.min, default.backoff_min),
            backoff_base: backoff(|backoff| backoff.base, default.backoff_base),
            backoff_max: backoff(|backoff| backoff.max, default.backoff_max),
            hedge_after: layers.pick(default.hedge_after, |spec| retries(spec)?.hedge_after.map(unless_zero)),
        };
        ordered(&mut merged.backoff_base, &mut merged.backoff_max);
        merged
    }

    /// Without faults. The retry is left out when it is as it always is.
    pub(super) fn message(&self) -> v1::RequestPolicy {
        let default = RequestPolicy::default().retry;
        let as_always = self.attempts.value == default.attempts
            && self.codes.value.iter().copied().eq(default.codes.iter().map(|code| u32::from(code.as_u16())))
            && self.grpc_codes.value.iter().copied().eq(default.grpc_codes.iter().copied().map(u32::from))
            && are_usual(&self.methods.value)
            && self.backoff_min.value == default.backoff_min
            && self.backoff_base.value == default.backoff_base
            && self.backoff_max.value == default.backoff_max
            && self.hedge_after.value == default.hedge_after;
        v1::RequestPolicy {
            timeout: self.request.value.and_then(wire),
            backend_timeout: self.backend_request.value.and_then(wire),
            stream_idle: wire(self.stream_idle.value.unwrap_or_default()),
            retry: (!as_always).then(|| v1::Retry {
                attempts: self.attempts.value,
                codes: self.codes.value.clone(),
                grpc_codes: self.grpc_codes.value.clone(),
                methods: self.methods.value.clone(),
                backoff_min: Some(self.backoff_min.value).filter(|least| !least.is_zero()).and_then(wire),
                backoff_base: wire(self.backoff_base.value),
                backoff_max: wire(self.backoff_max.value),
                hedge_after: self.hedge_after.value.and_then(wire),
            }),
            faults: Vec::new(),
        }
    }

    /// Every field for people.
    #[must_use]
    pub fn rows(&self) -> Vec<Row<'a>> {
        let numbers = |list: &Vec<u32>| list.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let methods = |list: &Vec<String>| if list.is_empty() { "idempotent".to_owned() } else { list.join(", ") };
        vec![
            self.request.row("timeouts.request", text_or_none),
            self.backend_request.row("timeouts.backendRequest", text_or_none),
            self.stream_idle.row("timeouts.streamIdle", text_or_none),
            self.attempts.row("retries.attempts", u32::to_string),
            self.codes.row("retries.codes", or_none(numbers)),
            self.grpc_codes.row(
                "retries.grpcCodes",
                or_none(|list: &Vec<u32>| {
                    list.iter().filter_map(|code| weft_policy::grpc::name(*code)).collect::<Vec<_>>().join(", ")
                }),
            ),
            self.methods.row("retries.methods", methods),
            self.backoff_min.row("retries.backoff.min", |least| text_or_none(&unless_zero(Span(*least)))),
            self.backoff_base.row("retries.backoff.base", text),
            self.backoff_max.row("retries.backoff.max", text),
            self.hedge_after.row("retries.hedgeAfter", text_or_none),
        ]
    }
}

/// An empty list is told as "none".
fn or_none<T>(text: impl Fn(&T) -> String) -> impl Fn(&T) -> String {
    move |value| Some(text(value)).filter(|text| !text.is_empty()).unwrap_or_else(|| "none".to_owned())
}

fn retries(spec: &TrafficPolicySpec) -> Option<&Retries> {
    spec.retries.as_ref()
}

/// Named or not, these are the methods that are repeated by default.
fn are_usual(methods: &[String]) -> bool {
    let is_named = |usual: &Method| methods.iter().any(|method| method == usual.as_str());
    methods.is_empty() || methods.len() == IDEMPOTENT.len() && IDEMPOTENT.iter().all(is_named)
}
