//! Where a value stands between the two ends of an axis, and which values are written at it.

use crate::unit::Unit;

/// How an axis spaces its values.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// Equal differences, from what the data asks for.
    Linear,
    /// Equal differences, zero included: lengths can be compared.
    FromZero,
    /// Equal ratios, with ticks at powers of ten. Only what is above zero has a place.
    Log10,
    /// Equal ratios, with ticks at powers of two: for things that are doubled.
    Log2,
    /// These names, at 0, 1, 2 and so on.
    Named(Vec<String>),
}

/// One of a chart's axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What is counted.
    pub label: String,
    /// In what.
    pub unit: Unit,
    /// How it is spaced.
    pub scale: Scale,
}

/// A value that is written at an axis, and where: 0 at the beginning, 1 at the end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    pub share: f64,
    pub label: String,
}

/// An axis over the data that it has to show.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// In the scale's own measure: the logarithm, where it has one.
    low: f64,
    high: f64,
    scale: Scale,
    pub ticks: Vec<Tick>,
}

impl Axis {
    /// An axis that counts `label` in `unit`.
    pub fn new(label: &str, unit: Unit, scale: Scale) -> Self {
        Self { label: label.to_owned(), unit, scale }
    }

    /// Spans `values`; those without a place count for nothing. Without any the axis spans one unit.
    pub(crate) fn span(&self, values: impl Iterator<Item = f64>, ticks_max: usize) -> Span {
        let ticks_max = ticks_max.max(2);
        let placed: Vec<f64> = values.filter_map(|value| measure(&self.scale, value)).collect();
        let low = placed.iter().copied().fold(f64::INFINITY, f64::min);
        let high = placed.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if placed.is_empty() { (0.0, 1.0) } else { (low, high) };
        match &self.scale {
            Scale::Linear => self.linear(low, high, ticks_max),
            Scale::FromZero => self.linear(low.min(0.0), high.max(0.0), ticks_max),
            Scale::Log10 => self.logarithmic(low, high, 10.0, ticks_max),
            Scale::Log2 => self.logarithmic(low, high, 2.0, ticks_max),
            Scale::Named(names) => named(names),
        }
    }

    /// From zero to the values' end and no further, without ticks: for bars, which end in their numbers.
    pub(crate) fn exact_span(&self, values: impl Iterator<Item = f64>) -> Span {
        let (mut low, mut high) = (0.0_f64, 0.0_f64);
        for measure in values.filter_map(|value| measure(&Scale::FromZero, value)) {
            (low, high) = (low.min(measure), high.max(measure));
        }
        let high = if high > low { high } else { low + 1.0 };
        Span { low, high, scale: Scale::FromZero, ticks: Vec::new() }
    }

    fn linear(&self, low: f64, high: f64, ticks_max: usize) -> Span {
        let (low, high) = if high > low { (low, high) } else { around(low) };
        let prefixed = self.unit.prefixed(low.abs().max(high.abs()));
        let step = step(low / prefixed.divisor, high / prefixed.divisor, ticks_max) * prefixed.divisor;
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let (low, high) = (first * step, last * step);
        // The ends are multiples of a step that cuts the span into at most `ticks_max`: the count is small.
        let ticks = (0..=(last - first) as usize)
            .map(|number| {
                let value = (first + number as f64) * step;
                Tick { share: (value - low) / (high - low), label: prefixed.text(value) }
            })
            .collect();
        Span { low, high, scale: self.scale.clone(), ticks }
    }

    /// `low` and `high` are exponents of `base`.
    fn logarithmic(&self, low: f64, high: f64, base: f64, ticks_max: usize) -> Span {
        // A span of less than a step would have one tick, or none: it is widened to whole powers.
        let (first, last) = ((low + 1e-9).floor(), (high - 1e-9).ceil());
        let (mut first, mut last) = (first, last.max(first + 1.0));
        let mut labels: Vec<f64> = Vec::new();
        if base == 10.0 && last - first <= 2.0 {
            let finer = |exponent: f64| [1.0, 2.0, 5.0].map(|digit: f64| exponent + digit.log10());
            let all: Vec<f64> = (first as i32..=last as i32).flat_map(|e| finer(f64::from(e))).collect();
            first = all.iter().copied().rfind(|tick| *tick <= low + 1e-9).unwrap_or(first);
            last = all.iter().copied().find(|tick| *tick >= high - 1e-9 && *tick > first).unwrap_or(last);
            labels.extend(all.into_iter().filter(|tick| (first..=last).contains(tick)));
        } else {
            let every = ((last - first) / ticks_max as f64).ceil().max(1.0);
            let steps = ((last - first) / every).floor() as usize;
            labels.extend((0..=steps).map(|number| first + number as f64 * every));
        }
        let ticks = labels.into_iter().map(|exponent| {
            let share = (exponent - first) / (last - first);
            Tick { share, label: self.unit.text(base.powf(exponent)) }
        });
        Span { low: first, high: last, scale: self.scale.clone(), ticks: ticks.collect() }
    }
}

impl Span {
    /// Where `value` stands: 0 at the beginning, 1 at the end. `None` for what has no place on this axis.
    pub fn share(&self, value: f64) -> Option<f64> {
        measure(&self.scale, value).map(|measure| (measure - self.low) / (self.high - self.low))
    }

    /// The same, and the nearer end for what is beyond it or below what a logarithm can show.
    pub fn share_within(&self, value: f64) -> f64 {
        self.share(value).map_or(0.0, |share| share.clamp(0.0, 1.0))
    }
}

/// A number in the measure of a scale, if it has one.
fn measure(scale: &Scale, value: f64) -> Option<f64> {
    let measure = match scale {
        Scale::Log10 => value.log10(),
        Scale::Log2 => value.log2(),
        _ => value,
    };
    // Beyond 1e150 the differences of differences are no numbers any more.
    (measure.is_finite() && measure.abs() < 1e150).then_some(measure)
}

fn named(names: &[String]) -> Span {
    let last = names.len().saturating_sub(1).max(1) as f64;
    // Half a place at either end, so that markers don't stand on the rim.
    let (low, high) = (-0.5, last + 0.5);
    let ticks = names
        .iter()
        .enumerate()
        .map(|(place, name)| Tick { share: (place as f64 - low) / (high - low), label: name.clone() });
    Span { low, high, scale: Scale::Named(Vec::new()), ticks: ticks.collect() }
}

/// A span around a single value: its size to either side, or one.
fn around(value: f64) -> (f64, f64) {
    match value.abs() {
        0.0 => (0.0, 1.0),
        size => (value - size / 2.0, value + size / 2.0),
    }
}

/// 1, 2 or 5 times a power of ten that cuts the span into at most `ticks_max` pieces.
fn step(low: f64, high: f64, ticks_max: usize) -> f64 {
    let least = (high - low) / ticks_max as f64;
    let power = 10_f64.powf(least.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= least * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(unit: &str, scale: Scale) -> Axis {
        Axis::new("x", Unit::named(unit), scale)
    }

    fn labels(span: &Span) -> Vec<&str> {
        span.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_span_the_data() {
        let span = axis("us", Scale::FromZero).span([0.3, 2.6].into_iter(), 6);
        assert_eq!(labels(&span), ["0 µs", "0.5 µs", "1 µs", "1.5 µs", "2 µs", "2.5 µs", "3 µs"]);
        assert_eq!(span.share(0.0), Some(0.0));
        assert_eq!(span.share(3.0), Some(1.0));
        let span = axis("B", Scale::FromZero).span([2_500_000.0].into_iter(), 4);
        assert_eq!(labels(&span), ["0 MiB", "1 MiB", "2 MiB", "3 MiB"]);
    }

    #[test]
    fn a_linear_axis_that_does_not_begin_at_zero_begins_near_its_data() {
        let span = axis("", Scale::Linear).span([0.9, 1.1].into_iter(), 5);
        assert_eq!(labels(&span), ["0.9", "0.95", "1", "1.05", "1.1"]);
        let span = axis("", Scale::Linear).span([-3.0, 2.0].into_iter(), 5);
        assert_eq!(labels(&span), ["-3", "-2", "-1", "0", "1", "2"]);
    }

    #[test]
    fn logarithmic_ticks_are_powers_each_with_its_own_prefix() {
        let span = axis("us", Scale::Log10).span([0.02, 3000.0].into_iter(), 8);
        assert_eq!(labels(&span), ["10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms"]);
        let span = axis("", Scale::Log2).span([1.0, 1024.0].into_iter(), 6);
        assert_eq!(labels(&span), ["1", "4", "16", "64", "256", "1,024"]);
        let span = axis("us", Scale::Log10).span([3.0, 9.0].into_iter(), 8);
        assert_eq!(labels(&span), ["2 µs", "5 µs", "10 µs"]);
    }

    #[test]
    fn what_a_logarithm_cannot_show_has_no_place_and_moves_nothing() {
        let values = [0.0, -1.0, f64::NAN, f64::INFINITY, 10.0, 100.0];
        let span = axis("", Scale::Log10).span(values.into_iter(), 5);
        assert_eq!(labels(&span), ["10", "20", "50", "100"]);
        assert_eq!(values.map(|value| span.share(value).is_some()), [false, false, false, false, true, true]);
        assert_eq!(span.share_within(0.0), 0.0);
        assert_eq!(span.share_within(1e9), 1.0);
    }

    #[test]
    fn an_axis_without_data_or_with_one_value_is_still_an_axis() {
        let scales = [Scale::Linear, Scale::FromZero, Scale::Log10, Scale::Log2, Scale::Named(Vec::new())];
        for scale in scales {
            for values in
                [vec![], vec![f64::NAN], vec![0.0], vec![7.0], vec![-7.0], vec![1e300], vec![1e-300]]
            {
                let span = axis("us", scale.clone()).span(values.iter().copied(), 5);
                assert!(span.high > span.low, "{scale:?} {values:?}: {span:?}");
                assert!(span.ticks.len() <= 20, "{scale:?} {values:?}: {span:?}");
                assert!(span.ticks.iter().all(|tick| (-0.01..=1.01).contains(&tick.share)), "{span:?}");
                let places = values.iter().filter_map(|value| span.share(*value));
                assert!(places.into_iter().all(f64::is_finite), "{scale:?} {values:?}: {span:?}");
            }
        }
    }

    #[test]
    fn names_stand_at_their_numbers() {
        let names = ["p50", "p99", "max"].map(str::to_owned).to_vec();
        let span = axis("", Scale::Named(names)).span([].into_iter(), 5);
        assert_eq!(labels(&span), ["p50", "p99", "max"]);
        assert_eq!(span.share(1.0), Some(0.5));
    }
}
