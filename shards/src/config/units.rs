//! Durations and sizes as text, always with their unit.

use std::time::Duration;

/// Longest duration that can be configured: adding it to any clock reading stays far from overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Largest first, so that the first exact one is the shortest text.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

const SIZE_UNITS: [(&str, usize); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads `25s`, `500ms`, `2m`, `1.5h` or several in a row as `1m30s`; `None` without a unit or above [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut nanos: u128 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, after) = split_where(after, |c| !c.is_ascii_alphabetic());
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit)?.1;
        nanos = nanos.checked_add(scaled(number, scale)?)?;
        rest = after;
    }
    (nanos <= DURATION_MAX.as_nanos()).then(|| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

/// The shortest text that [`parse_duration`] reads as `duration`.
pub fn duration_text(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let (unit, scale) =
        TIME_UNITS.into_iter().find(|(_, scale)| nanos.is_multiple_of(*scale)).unwrap_or(("ns", 1));
    format!("{}{unit}", nanos / scale)
}

/// Reads `64KiB`, `1MiB`, `512B`, `10MB`; `None` without a unit.
pub fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = split_where(text, |c| !c.is_ascii_digit());
    let scale = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<usize>().ok()?.checked_mul(scale)
}

/// The shortest text that [`parse_size`] reads as `bytes`, in binary units.
pub fn size_text(bytes: usize) -> String {
    let binary = SIZE_UNITS[..3].iter().find(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    let (unit, scale) = binary.copied().unwrap_or(("B", 1));
    format!("{}{unit}", bytes / scale)
}

fn split_where(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

/// `number` (digits, perhaps one point) times `scale`; what is finer than the unit below is refused.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return None;
    }
    let ten = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()?.checked_mul(scale)?;
    let exact = part.is_multiple_of(ten).then_some(part / ten)?;
    whole.parse::<u128>().ok()?.checked_mul(scale)?.checked_add(exact)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_carry_a_unit() {
        assert_eq!(parse_duration("25s"), Some(Duration::from_secs(25)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        for wrong in
            ["", "25", "s", "25 s", "1.2.3s", "-1s", ".s", "1.s", "5x", "0.5ns", "400d", "99999999999999999d"]
        {
            assert_eq!(parse_duration(wrong), None, "{wrong:?} must be refused");
        }
    }

    #[test]
    fn sizes_carry_a_unit() {
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("1 MiB"), Some(1_048_576));
        assert_eq!(parse_size("10MB"), Some(10_000_000));
        assert_eq!(parse_size("0B"), Some(0));
        for wrong in ["", "64", "KiB", "64kib", "-1B", "1.5MiB", "99999999999999999999B", "99999999999999GiB"]
        {
            assert_eq!(parse_size(wrong), None, "{wrong:?} must be refused");
        }
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(nanos in 0..=u64::try_from(DURATION_MAX.as_nanos()).unwrap()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }

        #[test]
        fn a_shown_size_reads_back(bytes in any::<usize>()) {
            prop_assert_eq!(parse_size(&size_text(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_breaks_the_readers(text in "\\PC*") {
            let _ = (parse_duration(&text), parse_size(&text));
        }
    }
}
