//! What is recorded, from the wire. Absent is nothing: an older control plane sends none.

use http::Uri;
use weft_proto::v1;

use super::{Invalid, header_name, invalid};
use crate::{
    model::{AccessLogFormat, AccessLogMode, Telemetry},
    trace::Sampling,
};

/// Request headers that become attributes.
pub const MAX_HEADERS: usize = 16;

/// Converts the telemetry of a workload.
///
/// # Errors
/// The first field that is wrong.
pub fn telemetry(wire: Option<v1::Telemetry>) -> Result<Telemetry, Invalid> {
    let Some(wire) = wire else { return Ok(Telemetry::default()) };
    if wire.sampled_per_million > 1_000_000 {
        return invalid("telemetry.sampled_per_million", wire.sampled_per_million, "must be 0 to 1000000");
    }
    if wire.headers.len() > MAX_HEADERS {
        return invalid("telemetry.headers", wire.headers.len(), format!("must be at most {MAX_HEADERS}"));
    }
    let headers = wire.headers.into_iter().map(|name| header_name("telemetry.headers", name));
    let access_log = match v1::AccessLogMode::try_from(wire.access_log) {
        Ok(v1::AccessLogMode::Errors) => AccessLogMode::Errors,
        Ok(v1::AccessLogMode::All) => AccessLogMode::All,
        Ok(v1::AccessLogMode::Off) => AccessLogMode::Off,
        Ok(v1::AccessLogMode::Sampled) => AccessLogMode::Sampled,
        Err(_) => return invalid("telemetry.access_log", wire.access_log, "is no mode that this version knows"),
    };
    let format = match v1::AccessLogFormat::try_from(wire.access_log_format) {
        Ok(v1::AccessLogFormat::Json) => AccessLogFormat::Json,
        Ok(v1::AccessLogFormat::Envoy) => AccessLogFormat::Envoy,
        Ok(v1::AccessLogFormat::Common) => AccessLogFormat::Common,
        Err(_) => {
            let field = "telemetry.access_log_format";
            return invalid(field, wire.access_log_format, "is no format that this version knows");
        }
    };
    Ok(Telemetry {
        sampling: Sampling::per_million(wire.sampled_per_million),
        endpoint: otlp_endpoint("telemetry.otlp_endpoint", &wire.otlp_endpoint)?.map(Into::into),
        headers: headers.collect::<Result<_, _>>()?,
        access_log,
        format,
    })
}

/// Checks an OTLP endpoint, `http://host:port`; an empty text is none.
///
/// # Errors
/// What it must be.
pub fn otlp_endpoint<'a>(field: &str, text: &'a str) -> Result<Option<&'a str>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let valid = text.parse::<Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http") && uri.port_u16().is_some() && uri.path() == "/" && uri.query().is_none()
    });
    if valid { Ok(Some(text)) } else { invalid(field, text, "must be http://host:port, such as http://127.0.0.1:4317") }
}
