//! What an experiment leaves: a summary for people, and everything as JSON.

use std::fmt::Write;
use std::time::Duration;

use host::Root;
use serde_json::{Value, json};

use super::arm::SetKnob;
use super::enclosure::Enclosure;
use super::host_knobs::Applied;
use super::plan::{Plan, Side};
use super::runner::{End, Run};
use super::statistics::{Interval, interval};
use super::verdict::{Change, Verdict, Words};
use crate::iso8601;

/// A run that is over, judged.
pub struct Report<'a> {
    pub plan: &'a Plan,
    pub run: &'a Run,
    pub pairs: Vec<(f64, f64)>,
    /// `None` with too few pairs.
    pub interval: Option<Interval>,
    /// `None` where the run ended before there were enough pairs.
    pub verdict: Option<Verdict>,
    pub circumstances: &'a Circumstances,
}

/// What a stranger must know to repeat it.
pub struct Circumstances {
    /// When it began, since 1970.
    pub began: Duration,
    pub enclosure: Enclosure,
    /// Below what the kernel tells of itself.
    pub root: Root,
    /// What an applied profile had changed on the host, and held in the samples, too.
    pub applied: Vec<Applied>,
    /// What it had changed for the host's network namespace, where none of the samples was.
    pub applied_outside: Vec<Applied>,
}

impl<'a> Report<'a> {
    /// Judges `run`.
    pub fn new(plan: &'a Plan, run: &'a Run, circumstances: &'a Circumstances) -> Self {
        let pairs = run.pairs();
        let interval = interval(&pairs);
        let (doubtful, samples) = run.doubtful();
        let is_void = doubtful as f64 > plan.doubtful_max * samples as f64;
        let verdict = interval.as_ref().map(|interval| match is_void {
            true => Verdict::Void { doubtful, samples },
            false => Verdict::of(interval, pairs.len(), plan.better, plan.margin),
        });
        Self { plan, run, pairs, interval, verdict, circumstances }
    }

    /// The verdict in words.
    pub fn sentence(&self) -> String {
        match &self.verdict {
            Some(verdict) => {
                Words { verdict, interval: self.interval.as_ref(), margin: self.plan.margin }.to_string()
            }
            None => format!("no verdict: {} of {} pairs were measured", self.pairs.len(), self.plan.pairs),
        }
    }

    /// Estimate and interval of the change, for people.
    pub fn change(&self) -> Option<String> {
        let Interval { estimate, low, high, confidence } = self.interval.as_ref()?;
        let confidence = confidence * 100.0;
        Some(format!(
            "{} ({} with {confidence:.1} % confidence)",
            Change::of(*estimate),
            Change::between(*low, *high)
        ))
    }

    /// How the run ended, where it wasn't as planned.
    pub fn early_end(&self) -> Option<String> {
        match &self.run.end {
            End::Complete => None,
            End::Interrupted => {
                Some(format!("interrupted after {} of {} pairs", self.pairs.len(), self.plan.pairs))
            }
            End::Failed(sentence) => Some(sentence.clone()),
        }
    }

    /// Samples of a side that count.
    pub fn values(&self, side: Side) -> Vec<f64> {
        self.pairs.iter().map(|(a, b)| *side.of(&[*a, *b])).collect()
    }

    /// The figure's unit.
    pub fn unit(&self) -> &str {
        self.run.samples.first().map_or("", |sample| &sample.unit)
    }

    /// What is printed at the end.
    pub fn text(&self) -> String {
        let Plan { title, hypothesis, metric, .. } = self.plan;
        let (doubtful, samples) = self.run.doubtful();
        let mut text = format!("{title}\n  hypothesis   {hypothesis}\n  figure       {metric}\n");
        let mut line = |name: &str, value: String| {
            // Writing to a String can't fail.
            let _infallible = writeln!(text, "  {name:<11}  {value}");
        };
        for side in [Side::A, Side::B] {
            let values = self.values(side);
            if let Some((median, low, high)) = spread(&values) {
                let (label, unit) = (self.label(side), self.unit());
                line(&format!("arm {side}"), format!("{median:.4} {unit} ({low:.4} to {high:.4}), {label}"));
            }
        }
        if let Some(change) = self.change() {
            line("B against A", format!("{change}, {} pairs", self.pairs.len()));
        }
        for (side, knob) in self.missed() {
            let SetKnob { knob, found } = knob;
            line(
                "not as asked",
                format!("arm {side}: {} was set to {} and was {found}", knob.target, knob.value),
            );
        }
        if doubtful > 0 {
            line("doubtful", format!("{doubtful} of {samples} samples"));
        }
        line("verdict", self.sentence());
        if let Some(end) = self.early_end() {
            line("ended early", end);
        }
        text
    }

    /// Knobs of which the kernel made another value than the arm's, as the first sample of the arm found them.
    fn missed(&self) -> impl Iterator<Item = (Side, &SetKnob)> {
        [Side::A, Side::B].into_iter().flat_map(|side| {
            let first = self.run.samples.iter().find(|sample| sample.side == side);
            let knobs = first.into_iter().flat_map(|sample| &sample.knobs);
            knobs.filter(|knob| !knob.holds()).map(move |knob| (side, knob))
        })
    }

    /// What reports call an arm.
    pub fn label(&self, side: Side) -> String {
        side.of(&self.plan.arms).label.clone().unwrap_or_else(|| side.to_string())
    }

    /// Everything, raw.
    pub fn json(&self) -> Value {
        let Circumstances { began, enclosure, root, applied, applied_outside } = self.circumstances;
        let told_all = |applied: &[Applied]| applied.iter().map(Applied::to_string).collect::<Vec<_>>();
        // All samples are of one machine and one build: the generator's word about them stands once.
        let told = |key: &str| self.run.samples.first().map(|sample| sample.report[key].clone());
        let pairs: Vec<Value> =
            self.pairs.iter().map(|(a, b)| json!({"a": a, "b": b, "ratio": b / a})).collect();
        let (doubtful, samples) = self.run.doubtful();
        json!({
            "utc": iso8601::text(*began),
            "corecast": env!("CARGO_PKG_VERSION"),
            "command": std::env::args().collect::<Vec<_>>(),
            "plan": self.plan,
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "ended_early": self.early_end(),
            "ratio_of_b_to_a": self.interval.map(|interval| json!({
                "estimate": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "confidence": interval.confidence,
                "method": METHOD,
            })),
            "unit": self.unit(),
            "pairs": pairs,
            "doubtful_samples": doubtful,
            "counted_samples": samples,
            "network_namespace": match enclosure {
                Enclosure::Fresh { .. } => "a fresh one for each sample",
                Enclosure::Current => "the caller's",
            },
            "applied_profile": told_all(applied),
            "applied_outside_of_samples": told_all(applied_outside),
            "kernel": root.read("/proc/sys/kernel/osrelease").ok(),
            "machine": told("machine"),
            "versions": told("versions"),
            "samples": self.run.samples,
        })
    }

    /// The part of a report's name before its ending: `NAME-20261121T103045Z`.
    pub fn file_stem(&self) -> String {
        let text = iso8601::text(self.circumstances.began);
        let seconds = text.split('.').next().unwrap_or(&text);
        let compact: String = seconds.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        format!("{}-{compact}Z", self.plan.name)
    }
}

const METHOD: &str = "Hodges-Lehmann estimate and Wilcoxon signed-rank interval (Walsh averages, exact distribution) of the \
                      logarithms of b/a, pair by pair";

/// Median, lowest and highest.
fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
    Some((median, low, high))
}
