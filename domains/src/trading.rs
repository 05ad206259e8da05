//! Prices: `{"type":"price_update","instrument":"BTC_USDT","price":60214.30,"ts":1710000000}`.

use bytes::Bytes;

use crate::limits::NAME_BYTES_MAX;
use crate::{Domain, Event, Message, Refusal};

/// The domain `trading`.
///
/// The room is the instrument, and so is the key of the last value. Members receive the whole message as it was written:
/// a price is not rewritten, and fields beyond the four go along unread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trading;

impl Domain for Trading {
    fn name(&self) -> &str {
        "trading"
    }

    fn event_types(&self) -> Vec<String> {
        vec!["price_update".to_owned()]
    }

    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let instrument = instrument(message)?;
        check(message, "price", is_price, PRICE_EXPECTED)?;
        check(message, "ts", is_timestamp, TS_EXPECTED)?;
        Ok(Event {
            room: instrument.clone(),
            event_type: message.event_type().to_owned(),
            data: Bytes::copy_from_slice(message.text().as_bytes()),
            key: Some(instrument),
        })
    }
}

const INSTRUMENT_EXPECTED: &str = "an instrument: a string of 1 to 255 of A-Z a-z 0-9 . _ : / -";
const PRICE_EXPECTED: &str = "a finite number above 0, without quotes";
const TS_EXPECTED: &str =
    "the time as a whole number above 0, without quotes: seconds or milliseconds since 1970";
/// The last millisecond of the year 9999. Microseconds since 1970 are beyond it from 1978 on, so a time in a unit that
/// readers don't expect is refused.
const TS_MAX: u64 = 253_402_300_799_999;

fn instrument(message: &Message<'_>) -> Result<String, Refusal> {
    let name = message.string("instrument", NAME_BYTES_MAX, INSTRUMENT_EXPECTED)?;
    if name.is_empty() || !name.bytes().all(is_symbol) {
        return Err(message.refuse("instrument", INSTRUMENT_EXPECTED));
    }
    Ok(name.into_owned())
}

fn is_symbol(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte)
}

fn check(
    message: &Message<'_>,
    field: &str,
    holds: impl Fn(&str) -> bool,
    expected: &str,
) -> Result<(), Refusal> {
    match message.raw(field) {
        Some(raw) if holds(raw) => Ok(()),
        _ => Err(message.refuse(field, expected)),
    }
}

/// `raw` is JSON, so what begins like a number is one; of what Rust reads as a number and JSON doesn't (`inf`, `+1`, `.5`)
/// nothing gets here.
fn is_price(raw: &str) -> bool {
    raw.parse::<f64>().is_ok_and(|price| price.is_finite() && price > 0.0)
}

fn is_timestamp(raw: &str) -> bool {
    raw.parse::<u64>().is_ok_and(|ts| (1..=TS_MAX).contains(&ts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(text: &str) -> Result<Event, Refusal> {
        Trading.admit(&Message::parse(text.as_bytes())?)
    }

    fn refusal(instrument: &str, price: &str, ts: &str) -> String {
        let text =
            format!(r#"{{"type":"price_update","instrument":{instrument},"price":{price},"ts":{ts}}}"#);
        admit(&text).expect_err(&text).to_string()
    }

    const GOOD: [&str; 3] = ["\"BTC_USDT\"", "60214.3", "1710000000"];

    #[test]
    fn a_price_goes_to_the_room_of_its_instrument_as_it_was_written() {
        let text = r#"{"ts":1710000000, "price":60214.30, "instrument":"BTC_USDT", "type":"price_update", "venue":{"x":1e3}}"#;
        let event = admit(&format!("\r\n {text}\t\n")).expect("it is a price");
        assert_eq!(event.room, "BTC_USDT");
        assert_eq!(event.event_type, "price_update");
        assert_eq!(event.key.as_deref(), Some("BTC_USDT"));
        assert_eq!(event.data, text.as_bytes());
    }

    #[test]
    fn every_symbol_character_may_stand_in_an_instrument() {
        let longest = "a".repeat(255);
        for instrument in ["azAZ09._:/-", "x", &longest] {
            let text =
                format!(r#"{{"type":"price_update","instrument":"{instrument}","price":1e-3,"ts":1}}"#);
            assert_eq!(admit(&text).expect(&text).room, instrument);
        }
    }

    #[test]
    fn an_escaped_instrument_is_the_instrument_it_spells() {
        let event =
            admit(r#"{"type":"price_update","instrument":"\u0042TC","price":1,"ts":1}"#).expect("B is B");
        assert_eq!(event.room, "BTC");
    }

    #[test]
    fn an_instrument_that_is_none_is_refused_by_name() {
        let long = format!("\"{}\"", "a".repeat(256));
        for instrument in
            ["\"\"", "7", "null", "[\"BTC\"]", "\"BTC USDT\"", "\"BTC\\n\"", "\"B*\"", "\"ä\"", "\"\\ud800\""]
        {
            assert_eq!(
                refusal(instrument, GOOD[1], GOOD[2]),
                format!(
                    "instrument: found {instrument}, due an instrument: a string of 1 to 255 of A-Z a-z 0-9 . _ : / -"
                )
            );
        }
        assert!(refusal(&long, GOOD[1], GOOD[2]).starts_with("instrument: found \"aaa"));
    }

    #[test]
    fn a_price_that_is_none_is_refused_by_name() {
        for price in ["\"60214.3\"", "0", "0.0", "-0.0", "-1", "1e999", "1e-999", "null", "true", "[1]", "{}"]
        {
            assert_eq!(
                refusal(GOOD[0], price, GOOD[2]),
                format!("price: found {price}, due a finite number above 0, without quotes")
            );
        }
    }

    #[test]
    fn a_time_that_is_none_is_refused_by_name() {
        for ts in ["\"1710000000\"", "0", "-1", "1.5", "1710000000.0", "1e9", "null", "1710000000000000"] {
            assert_eq!(
                refusal(GOOD[0], GOOD[1], ts),
                format!(
                    "ts: found {ts}, due the time as a whole number above 0, without quotes: seconds or milliseconds since 1970"
                )
            );
        }
    }

    #[test]
    fn seconds_and_milliseconds_up_to_the_year_9999_are_times() {
        for ts in ["1", "1710000000", "1710000000000", "253402300799999"] {
            let text = format!(r#"{{"type":"price_update","instrument":"X","price":1,"ts":{ts}}}"#);
            assert!(admit(&text).is_ok(), "{text}");
        }
        assert!(refusal(GOOD[0], GOOD[1], "253402300800000").starts_with("ts: "));
    }

    #[test]
    fn a_missing_field_is_refused_by_name() {
        for (text, start) in [
            (r#"{"type":"price_update","price":1,"ts":1}"#, "instrument: found nothing, due an instrument"),
            (
                r#"{"type":"price_update","instrument":"X","ts":1}"#,
                "price: found nothing, due a finite number",
            ),
            (r#"{"type":"price_update","instrument":"X","price":1}"#, "ts: found nothing, due the time"),
        ] {
            let refusal = admit(text).expect_err("a field is missing").to_string();
            assert!(refusal.starts_with(start), "{refusal}");
        }
    }
}
