//! Numbers as a reader wants them: three digits that count.

/// `value` with three significant digits, without zeros at the end of a fraction; "no value" where it is none.
///
/// Large numbers have their thousands apart, and what is below a ten-thousandth has an exponent.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "no value".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if magnitude < -4.0 {
        return format!("{value:.1e}");
    }
    let decimals = (2.0 - magnitude).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = fraction.trim_end_matches('0');
    let whole = thousands(whole);
    if fraction.is_empty() { whole } else { format!("{whole}.{fraction}") }
}

/// Decimal digits with a comma before each three.
fn thousands(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        let cases = [
            (2.71649, "2.72"),
            (0.042193, "0.0422"),
            (1234.5, "1,234"),
            (12.0, "12"),
            (0.5, "0.5"),
            (100.0, "100"),
            (19_000.0, "19,000"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
            (0.0, "0"),
            (0.00001234, "1.2e-5"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn what_is_no_number_says_so() {
        assert_eq!(number(f64::NAN), "no value");
        assert_eq!(number(f64::INFINITY), "no value");
        assert_eq!(number(-0.0), "0");
    }
}
