//! Moments as ISO 8601 text in UTC, as RFC 3339 writes them.

use std::time::Duration;

const SECONDS_PER_DAY: u64 = 86_400;
/// Where years of four digits end: 2,932,897 days after 1970.
const YEAR_10000: u64 = 2_932_897 * SECONDS_PER_DAY;

/// `2026-02-22T10:00:00.123456Z` for a time since 1970.
pub fn text(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (year, month, day) = date_of(seconds / SECONDS_PER_DAY);
    let second_of_day = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let micros = since_1970.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The time since 1970 that `text` names, and the digits of its fraction; `None` for anything else, and for what is before 1970
/// or after 9999 in UTC, which [`text`] could not write.
///
/// An offset (`+02:00`) is taken into account.
pub fn parse(text: &str) -> Option<(Duration, usize)> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let days = days_of(year, month, day)?;
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanos, digits, zone) = fraction(rest)?;
    let local = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let seconds = i64::try_from(local).ok()? - offset_seconds(zone)?;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds < YEAR_10000)?;
    Some((Duration::new(seconds, nanos), digits))
}

/// Three numbers of fixed width.
fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Nanoseconds, how many digits there were, and what comes after them.
fn fraction(text: &str) -> Option<(u32, usize, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, 0, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (shown, zone) = rest.split_at(digits);
    let nanos: u32 = format!("{:0<9}", shown.get(..digits.min(9))?).parse().ok()?;
    (digits > 0).then_some((nanos, digits, zone))
}

fn offset_seconds(zone: &str) -> Option<i64> {
    let (sign, clock) = match zone {
        "Z" | "z" => return Some(0),
        _ => (if zone.starts_with('-') { -1 } else { 1 }, zone.strip_prefix(['+', '-'])?),
    };
    let [hour, minute, _] = numbers(&format!("{clock}:00"), ':', [2, 2, 2])?;
    Some(sign * i64::try_from(hour * 3600 + minute * 60).ok()?)
}

/// Days since 1970 of a date of the Gregorian calendar.
///
/// Counts in eras of 400 years (146,097 days) that begin on the first of March, so that the leap day comes last.
fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The inverse of [`days_of`].
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_and_read_back() {
        // The first and last day of every month for 130 years, leap years and a century that is none included.
        for day in (0..48_000).step_by(7) {
            let moment = Duration::new(day * SECONDS_PER_DAY + day % 86_400, 123_456_000);
            assert_eq!(parse(&text(moment)), Some((moment, 6)), "{}", text(moment));
        }
        assert_eq!(text(Duration::from_secs(1_771_754_400)), "2026-02-22T10:00:00.000000Z");
        assert_eq!(text(Duration::from_secs(951_782_399)), "2000-02-28T23:59:59.000000Z");
        assert_eq!(text(Duration::from_secs(951_782_400)), "2000-02-29T00:00:00.000000Z");
    }

    #[test]
    fn an_offset_and_any_fraction_are_read() {
        let ten = Duration::from_secs(1_771_754_400);
        for (text, digits) in [
            ("2026-02-22T10:00:00Z", 0),
            ("2026-02-22T12:00:00+02:00", 0),
            ("2026-02-22T05:30:00.000-04:30", 3),
            ("2026-02-22 10:00:00.0000000000z", 10),
        ] {
            assert_eq!(parse(text), Some((ten, digits)), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_not_taken_for_one() {
        for text in [
            "",
            "2026",
            "2026-02-30T10:00:00Z",
            "2026-13-01T10:00:00Z",
            "2026-02-22T24:00:00Z",
            "2026-02-22T10:00:00",
            "2026-02-22T10:00:00.Z",
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59-00:01",
            "yesterday at noon, or so",
            "2026-02-22T10:00:00+2:00",
            "2026-02-2\u{e9}T10:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
