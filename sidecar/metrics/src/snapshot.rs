//! What the metrics are at one time: families of samples with labels as fields. Made by the registry, read by the text
//! forms and by whoever wants numbers.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    histogram::HistogramValue,
    text::{self, Format},
};

/// Labels of a series, in the order in which they are written.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Labels(Arc<[(&'static str, Box<str>)]>);

/// What a family is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows. Its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations.
    Histogram,
}

/// What a sample holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Histogram(Box<HistogramValue>),
}

/// One series of a family.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    labels: Labels,
    more: Vec<(&'static str, &'static str)>,
    /// Its value.
    pub value: Value,
}

/// All series of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// What it is.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// Its series.
    pub samples: Vec<Sample>,
}

/// Everything at one time, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// By name.
    pub families: BTreeMap<&'static str, Family>,
}

/// Takes what each series has to say.
#[derive(Default)]
pub struct Collector(pub(crate) Snapshot);

impl Labels {
    /// From pairs.
    #[must_use]
    pub fn new(pairs: &[(&'static str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| (*name, Box::from(*value))).collect())
    }

    /// The same names with another value each, but for those that keep theirs.
    pub(crate) fn shared(&self, value: &str, kept: &[&str]) -> Self {
        let of = |name: &'static str, own: &str| (name, Box::from(if kept.contains(&name) { own } else { value }));
        Self(self.0.iter().map(|(name, own)| of(name, own)).collect())
    }

    /// In the order in which they are written.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, &**value))
    }
}

impl Sample {
    /// All labels. One without a value is as good as none.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.labels.iter().chain(self.more.iter().copied())
    }

    /// The value of a label; empty when there is none of this name.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels().find(|(label, _)| *label == name).map_or("", |(_, value)| value)
    }

    /// The number of a counter or a gauge, the count of a histogram.
    #[must_use]
    pub fn number(&self) -> f64 {
        match &self.value {
            Value::Number(number) => *number,
            Value::Histogram(histogram) => float(histogram.count()),
        }
    }
}

impl Snapshot {
    /// The series of a name; none when there is no such family.
    #[must_use]
    pub fn samples(&self, name: &str) -> &[Sample] {
        self.families.get(name).map_or(&[], |family| &family.samples)
    }

    /// How many series there are; a histogram is one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.families.values().map(|family| family.samples.len()).sum()
    }

    /// All of it as text.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        text::write(self, format)
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Collector {
    /// What was said.
    #[must_use]
    pub fn finish(self) -> Snapshot {
        self.0
    }

    /// A value of a counter. `name` ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: u64) {
        self.add((Kind::Counter, name, help), labels, &[], Value::Number(float(value)));
    }

    /// A value of a counter with labels besides those of the series.
    pub fn counter_with(
        &mut self,
        (name, help): (&'static str, &'static str),
        labels: &Labels,
        more: &[(&'static str, &'static str)],
        value: u64,
    ) {
        self.add((Kind::Counter, name, help), labels, more, Value::Number(float(value)));
    }

    /// A counter that is no whole number.
    pub fn counter_seconds(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: f64) {
        self.add((Kind::Counter, name, help), labels, &[], Value::Number(value));
    }

    /// A value of a gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: f64) {
        self.add((Kind::Gauge, name, help), labels, &[], Value::Number(value));
    }

    /// A value of a gauge with labels besides those of the series.
    pub fn gauge_with(
        &mut self,
        (name, help): (&'static str, &'static str),
        labels: &Labels,
        more: &[(&'static str, &'static str)],
        value: f64,
    ) {
        self.add((Kind::Gauge, name, help), labels, more, Value::Number(value));
    }

    /// A histogram.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: HistogramValue) {
        self.add((Kind::Histogram, name, help), labels, &[], Value::Histogram(Box::new(value)));
    }

    fn add(
        &mut self,
        (kind, name, help): (Kind, &'static str, &'static str),
        labels: &Labels,
        more: &[(&'static str, &'static str)],
        value: Value,
    ) {
        let family = self.0.families.entry(name).or_insert_with(|| Family { kind, help, samples: Vec::new() });
        debug_assert!(family.kind == kind, "{name} is registered as another kind");
        family.samples.push(Sample { labels: labels.clone(), more: more.to_vec(), value });
    }
}

/// Exact up to 2^53, which is what a scraper keeps as well.
#[must_use]
pub const fn float(value: u64) -> f64 {
    value as f64
}
