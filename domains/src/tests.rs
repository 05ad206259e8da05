//! Promises that hold for any message, random ones included.

use proptest::prelude::*;
use serde_json::Value;

use crate::limits::{EXPECTED_CHARS_MAX, FIELD_CHARS_MAX, FOUND_CHARS_MAX, is_name};
use crate::{BUILT_IN, Event, Refusal, Registry, SchemaDomain};

const SENSORS: &str = include_str!("../../deploy/domains/sensors.json");

fn registry() -> Registry {
    let mut registry = Registry::built_in(&BUILT_IN).expect("built-in domains don't conflict");
    let sensors = SchemaDomain::parse(SENSORS, "sensors.json").expect("the example is good");
    registry.register(Box::new(sensors)).expect("its type is its own");
    registry
}

/// Fields of a good event of each type, as JSON texts.
fn good() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let digits = 1u64..253_402_300_800_000;
    let price =
        (digits.clone(), "[A-Za-z0-9._:/-]{1,255}", "[1-9][0-9]{0,9}(\\.[0-9]{1,9})?([eE][+-]?[0-9])?");
    let price = price.prop_map(|(ts, instrument, price)| {
        vec![
            ("type", "\"price_update\"".to_owned()),
            ("instrument", format!("\"{instrument}\"")),
            ("price", price),
            ("ts", ts.to_string()),
        ]
    });
    let envelope = ("[a-zäß€ *?:]{1,60}", json(), prop_oneof![Just("\"message\""), Just("\"event\"")]);
    let envelope = envelope.prop_map(|(room, data, name)| {
        vec![("type", name.to_owned()), ("room", format!("\"{room}\"")), ("data", data.to_string())]
    });
    let reading = ("[a-z]{1,64}", "[a-z0-9-]{1,32}", -273i32..1_000_000).prop_map(|(site, sensor, value)| {
        vec![
            ("type", "\"sensor_reading\"".to_owned()),
            ("site", format!("\"{site}\"")),
            ("sensor", format!("\"{sensor}\"")),
            ("at", "\"2026-01-01T00:00:00Z\"".to_owned()),
            ("values", format!(r#"[{{"quantity":"humidity","value":{value}.0}}]"#)),
        ]
    });
    prop_oneof![price, envelope, reading].prop_shuffle()
}

/// Any JSON value.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::hash_map(".{0,8}", inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn write(fields: &[(&str, String)], space: &str) -> String {
    let fields: Vec<_> =
        fields.iter().map(|(name, value)| format!("{space}\"{name}\"{space}:{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// What must be true of any answer.
fn check(text: &[u8], answer: &Result<Event, Refusal>) {
    match answer {
        Ok(event) => {
            assert!(is_name(&event.room), "{event:?}");
            let part = |window: &[u8]| window == &event.data[..];
            assert!(text.windows(event.data.len()).any(part), "the data are the client's bytes: {event:?}");
            assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&event.data).is_ok(), "{event:?}");
        }
        Err(refusal) => {
            assert!(refusal.field.chars().count() <= FIELD_CHARS_MAX);
            assert!(refusal.expected.chars().count() <= EXPECTED_CHARS_MAX);
            assert!(refusal.found.chars().count() <= FOUND_CHARS_MAX);
            assert!(!refusal.to_string().contains(char::is_control), "{refusal:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_have_an_answer_within_bounds(text in proptest::collection::vec(any::<u8>(), 0..512)) {
        check(&text, &registry().admit(&text));
    }

    #[test]
    fn any_json_has_an_answer_within_bounds(value in json()) {
        let text = value.to_string();
        check(text.as_bytes(), &registry().admit(text.as_bytes()));
    }

    #[test]
    fn an_event_with_one_field_replaced_has_an_answer_within_bounds(
        mut fields in good(), at in 0usize..8, value in json(),
    ) {
        let at = at % fields.len();
        fields[at].1 = value.to_string();
        let text = write(&fields, "");
        check(text.as_bytes(), &registry().admit(text.as_bytes()));
    }

    #[test]
    fn an_event_with_bytes_damaged_has_an_answer_within_bounds(
        fields in good(), damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let mut text = write(&fields, "").into_bytes();
        for (at, byte) in damage {
            let at = at % text.len();
            text[at] = byte;
        }
        check(&text, &registry().admit(&text));
    }

    #[test]
    fn an_event_is_admitted_with_its_bytes_in_any_order_and_spacing(
        fields in good(), space in "[ \t\r\n]{0,3}",
    ) {
        let text = write(&fields, &space);
        let event = registry().admit(format!("{space}{text}{space}").as_bytes());
        let event = event.map_err(|refusal| TestCaseError::fail(format!("{refusal} in {text}")))?;
        let data = fields.iter().find(|(name, _)| *name == "data").map(|(_, data)| data.clone());
        let due = if event.event_type == "message" { data.unwrap_or_default() } else { text };
        prop_assert_eq!(&event.data[..], due.as_bytes());
    }

    #[test]
    fn an_event_is_refused_alike_in_any_order_of_its_fields(
        (fields, shuffled) in good().prop_flat_map(|mut fields| {
            let at = fields.iter().position(|(name, _)| !["type", "data"].contains(name)).expect("others exist");
            fields[at].1 = "false".to_owned();
            (Just(fields.clone()), Just(fields).prop_shuffle())
        }),
    ) {
        let refused = |fields: &[(&str, String)]| registry().admit(write(fields, "").as_bytes()).err();
        prop_assert!(refused(&fields).is_some());
        prop_assert_eq!(refused(&fields), refused(&shuffled));
    }

    #[test]
    fn an_event_without_a_field_it_needs_is_refused_by_name(mut fields in good(), at in 0usize..8) {
        let (name, _) = fields.remove(at % fields.len());
        let refusal = registry().admit(write(&fields, "").as_bytes()).expect_err("a field is missing");
        prop_assert_eq!(refusal.field, name);
        prop_assert_eq!(refusal.found, crate::NOTHING);
    }
}
