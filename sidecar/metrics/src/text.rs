//! A snapshot as text, in the two forms that Prometheus reads: its own (version 0.0.4) and OpenMetrics 1.0, which has
//! exemplars.

use std::fmt::Write;

use crate::{
    exemplar::{Exemplar, TraceId},
    histogram::{BOUNDS, HistogramValue},
    snapshot::{Family, Kind, Sample, Snapshot, Value},
};

/// A form of text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The form that a client with this `Accept` header gets: OpenMetrics when it says so and does not give it weight 0.
    #[must_use]
    pub fn accepted(accept: Option<&str>) -> Self {
        let wants = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let refused = parts.any(|part| {
                part.strip_prefix("q=")
                    .and_then(|weight| weight.parse::<f32>().ok())
                    .is_some_and(|weight| weight <= 0.0)
            });
            kind.eq_ignore_ascii_case("application/openmetrics-text") && !refused
        };
        if accept.is_some_and(|accept| accept.split(',').any(wants)) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// For the header `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The whole of it.
pub fn write(snapshot: &Snapshot, format: Format) -> String {
    let mut out = String::new();
    for (name, family) in &snapshot.families {
        head(&mut out, name, family, format);
        for sample in &family.samples {
            match &sample.value {
                Value::Number(value) => {
                    out.push_str(name);
                    labels(&mut out, sample, None);
                    let _ = writeln!(out, " {}", number(*value));
                }
                Value::Histogram(histogram) => buckets(&mut out, name, sample, histogram, format),
            }
        }
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn head(out: &mut String, name: &str, family: &Family, format: Format) {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    // A counter of OpenMetrics has its suffix in the samples only.
    let name = match format {
        Format::OpenMetrics if family.kind == Kind::Counter => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    };
    let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
    let help = if format == Format::OpenMetrics { help.replace('"', "\\\"") } else { help };
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn buckets(out: &mut String, name: &str, sample: &Sample, histogram: &HistogramValue, format: Format) {
    let mut total = 0_u64;
    let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
    for ((count, exemplar), bound) in histogram.buckets.iter().zip(&histogram.exemplars).zip(bounds) {
        total += count;
        let _ = write!(out, "{name}_bucket");
        labels(out, sample, Some(bound));
        let _ = write!(out, " {total}");
        if let (Format::OpenMetrics, Some(exemplar)) = (format, exemplar) {
            example(out, exemplar);
        }
        out.push('\n');
    }
    let _ = write!(out, "{name}_sum");
    labels(out, sample, None);
    let _ = write!(out, " {}\n{name}_count", histogram.seconds());
    labels(out, sample, None);
    let _ = writeln!(out, " {total}");
}

fn example(out: &mut String, Exemplar { trace: TraceId(bytes), micros, millis }: &Exemplar) {
    out.push_str(" # {trace_id=\"");
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    let value = std::time::Duration::from_micros(*micros).as_secs_f64();
    let _ = write!(out, "\"}} {value} {}.{:03}", millis / 1000, millis % 1000);
}

/// In braces, those without a value left out, as Prometheus has it.
fn labels(out: &mut String, sample: &Sample, bound: Option<&str>) {
    let pairs = sample.labels().chain(bound.map(|bound| ("le", bound))).filter(|(_, value)| !value.is_empty());
    let mut open = false;
    for (name, value) in pairs {
        out.push(if open { ',' } else { '{' });
        open = true;
        let _ = write!(out, "{name}=\"");
        for character in value.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if open {
        out.push('}');
    }
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}
