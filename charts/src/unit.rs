//! What a number counts, and the prefix with which it is read best.

use crate::number::number;

/// The unit of an axis or a value, as measurements name it: "us", "B", "/s", "x" or any other word.
///
/// Times, memory and rates are shown with the prefix that leaves one to three digits before the point.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    symbol: String,
    family: Family,
    /// How many of the family's base unit one of this unit is.
    base: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Seconds,
    Bytes,
    PerSecond,
    Factor,
    Other,
}

/// A unit with its prefix: shown values are the data's values over `divisor`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prefixed {
    pub divisor: f64,
    pub symbol: String,
}

const SECONDS: [(f64, &str); 4] = [(1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s")];
const BYTES: [(f64, &str); 4] =
    [(1.0, "B"), (1024.0, "KiB"), (1024.0 * 1024.0, "MiB"), (1024.0 * 1024.0 * 1024.0, "GiB")];
const PER_SECOND: [(f64, &str); 4] = [(1.0, "/s"), (1e3, "k/s"), (1e6, "M/s"), (1e9, "G/s")];

impl Unit {
    /// The unit that measurements call `symbol`; an unknown one stands behind the number as it is.
    pub fn named(symbol: &str) -> Self {
        let (family, base) = match symbol {
            "ns" => (Family::Seconds, 1e-9),
            "us" | "µs" => (Family::Seconds, 1e-6),
            "ms" => (Family::Seconds, 1e-3),
            "s" => (Family::Seconds, 1.0),
            "B" => (Family::Bytes, 1.0),
            "KiB" => (Family::Bytes, BYTES[1].0),
            "MiB" => (Family::Bytes, BYTES[2].0),
            "GiB" => (Family::Bytes, BYTES[3].0),
            "/s" => (Family::PerSecond, 1.0),
            "x" => (Family::Factor, 1.0),
            _ => (Family::Other, 1.0),
        };
        Self { symbol: symbol.trim().to_owned(), family, base }
    }

    /// A plain number.
    pub fn none() -> Self {
        Self::named("")
    }

    /// `value` with three digits, its prefix and its unit.
    pub fn text(&self, value: f64) -> String {
        if !value.is_finite() {
            return number(value);
        }
        let prefixed = self.prefixed(value);
        prefixed.text(value)
    }

    /// The prefix under which `largest` is read best.
    pub(crate) fn prefixed(&self, largest: f64) -> Prefixed {
        let steps = match self.family {
            Family::Seconds => SECONDS,
            Family::Bytes => BYTES,
            Family::PerSecond => PER_SECOND,
            Family::Factor => return Prefixed { divisor: 1.0, symbol: "×".to_owned() },
            Family::Other => return Prefixed { divisor: 1.0, symbol: self.symbol.clone() },
        };
        // Zero, and what is no number, has no size of its own: it keeps the unit that it came in.
        let amount = match largest.abs() * self.base {
            size if size.is_finite() && size > 0.0 => size,
            _ => self.base,
        };
        // 999.6 is shown as 1,000, which the next prefix says shorter.
        let fitting = steps.iter().rev().find(|(size, _)| amount >= size * 0.9995).unwrap_or(&steps[0]);
        Prefixed { divisor: fitting.0 / self.base, symbol: fitting.1.to_owned() }
    }
}

impl Prefixed {
    /// `value`, which is in the unit of the data, under this prefix.
    pub fn text(&self, value: f64) -> String {
        let digits = number(value / self.divisor);
        match self.symbol.as_str() {
            "" => digits,
            // A share stands at its number, as people write it.
            "%" | "×" => format!("{digits}{}", self.symbol),
            symbol => format!("{digits} {symbol}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_with_the_prefix_that_leaves_few_digits() {
        let cases = [
            ("us", 0.020663, "20.7 ns"),
            ("us", 2.3176, "2.32 µs"),
            ("us", 9306.1, "9.31 ms"),
            ("us", 2_500_000.0, "2.5 s"),
            ("ms", 0.5, "500 µs"),
            ("B", 494.97, "495 B"),
            ("B", 10_641_408.0, "10.1 MiB"),
            ("MiB", 0.5, "512 KiB"),
            ("/s", 11_269_030.0, "11.3 M/s"),
            ("/s", 12.0, "12 /s"),
            ("x", 1.0, "1×"),
            ("%", 97.26, "97.3%"),
            ("messages", 12_345.0, "12,345 messages"),
            ("", 7.0, "7"),
        ];
        for (unit, value, text) in cases {
            assert_eq!(Unit::named(unit).text(value), text, "{value} {unit}");
        }
    }

    #[test]
    fn degenerate_values_keep_their_unit_or_say_that_they_are_none() {
        assert_eq!(Unit::named("us").text(0.0), "0 µs");
        assert_eq!(Unit::named("us").text(-1500.0), "-1.5 ms");
        assert_eq!(Unit::named("us").text(f64::NAN), "no value");
        assert_eq!(Unit::named("us").text(999.6), "1 ms");
        assert_eq!(Unit::named("us").text(1e-9), "1.0e-6 ns");
    }
}
