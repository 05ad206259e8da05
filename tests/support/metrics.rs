//! A page of metrics in the Prometheus text format, read.

use std::collections::BTreeMap;

/// The samples of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// # Panics
    /// On a line that is neither a comment nor a sample.
    #[track_caller]
    pub fn parse(page: &str) -> Self {
        let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line:?}"))).collect())
    }

    /// The sum over all labels; 0 for a family that has no sample.
    pub fn sum(&self, name: &str) -> f64 {
        self.0.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    }

    /// The value of a family's only sample; `None` where it has none, or several.
    pub fn only(&self, name: &str) -> Option<f64> {
        only(self.0.iter().filter(|sample| sample.name == name))
    }

    /// The value of a family's only sample whose `label` is `value`; `None` where it has none, or several.
    pub fn labelled_only(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let fits = |sample: &&Sample| {
            sample.name == name && sample.labels.get(label).is_some_and(|found| found == value)
        };
        only(self.0.iter().filter(fits))
    }

    /// The sum over the samples whose `label` satisfies `wanted`.
    pub fn sum_where(&self, name: &str, label: &str, wanted: impl Fn(&str) -> bool) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name && sample.labels.get(label).is_some_and(|value| wanted(value))
        };
        self.0.iter().filter(fits).map(|sample| sample.value).sum()
    }

    /// The sum over the samples whose `label` is `value`.
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> f64 {
        self.sum_where(name, label, |found| found == value)
    }

    /// Connections closed for the given reason of `close.rs`.
    pub fn closed(&self, reason: &str) -> f64 {
        self.labelled("corecast_connections_closed_total", "reason", reason)
    }

    /// Connections closed because they fell behind, whatever the limit.
    pub fn closed_as_slow(&self) -> f64 {
        self.sum_where("corecast_connections_closed_total", "reason", |reason| reason.starts_with("slow_"))
    }

    /// The samples of a family, for a failing test's message.
    pub fn show(&self, name: &str) -> String {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        samples.map(|sample| format!("{:?} {}; ", sample.labels, sample.value)).collect()
    }
}

fn only<'a>(mut samples: impl Iterator<Item = &'a Sample>) -> Option<f64> {
    let first = samples.next()?;
    samples.next().is_none().then_some(first.value)
}

/// `name{label="value",...} number`.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    // A value may hold commas but no quotes: no text from outside goes into a label.
    let pairs = labels.split_terminator('"').collect::<Vec<_>>();
    let (pairs, rest) = pairs.as_chunks::<2>();
    let pair = |[label, value]: &[&str; 2]| {
        let label = label.trim_start_matches(',').strip_suffix('=')?;
        Some((label.to_owned(), (*value).to_owned()))
    };
    let labels = pairs.iter().map(pair).collect::<Option<_>>().filter(|_| rest.is_empty())?;
    Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
}
