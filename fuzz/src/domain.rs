//! What clients and other nodes say inside a frame: messages that domains judge, and the envelopes they travel in.

use std::sync::LazyLock;

use bytes::Bytes;
use domains::limits::{EXPECTED_CHARS_MAX, FIELD_CHARS_MAX, FOUND_CHARS_MAX, VALUE_BYTES_MAX, is_name};
use domains::{BUILT_IN, Domain, Message, Refusal, Registry, SchemaDomain};
use serde_json::value::RawValue;
use shards::command::Label;
use shards::config::Deliver;
use shards::envelope;

/// A message is split into texts that are JSON themselves and stand in it; what a domain admits has a room and is JSON, and
/// what is refused is refused in one short line.
pub(crate) fn message(input: &[u8]) {
    let message = match Message::parse(input) {
        Ok(message) => message,
        Err(refusal) => return check_refusal(&refusal),
    };
    assert!(serde_json::from_str::<&RawValue>(message.text()).is_ok(), "a message that is no JSON");
    assert_eq!(message.raw("type").map(str::is_empty), Some(false), "a type without a text");
    for name in ["type", "room", "data", "payload", ""] {
        if let Some(raw) = message.raw(name) {
            assert!(message.text().contains(raw), "a field that the message doesn't hold");
            assert!(serde_json::from_str::<&RawValue>(raw).is_ok(), "a field that is no JSON");
            assert_eq!(raw.trim_matches([' ', '\t', '\r', '\n']), raw, "white space around a field");
        }
        match message.name(name) {
            Ok(name) => assert!(is_name(&name), "{name:?} is no name"),
            Err(refusal) => check_refusal(&refusal),
        }
    }
    match message.value() {
        Ok(value) => {
            assert!(message.text().len() <= VALUE_BYTES_MAX, "a tree of a text above its bound");
            assert_eq!(value["type"], message.event_type(), "two readings of a type");
        }
        Err(refusal) => check_refusal(&refusal),
    }
    match REGISTRY.admit(input) {
        Ok(event) => {
            assert!(is_name(&event.room), "the room {:?}", event.room);
            assert_eq!(event.event_type, message.event_type(), "two readings of a type");
            let data = std::str::from_utf8(&event.data).expect("data is text");
            assert!(message.text().contains(data), "data that the message doesn't hold");
            let again =
                REGISTRY.admit(message.text().as_bytes()).expect("without the white space around it too");
            assert_eq!(again, event, "two readings of a message");
        }
        Err(refusal) => check_refusal(&refusal),
    }
}

/// A domain's file that is taken makes a domain that judges messages; any other has a sentence.
pub(crate) fn schema(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match SchemaDomain::parse(text, "fuzz.json") {
        Ok(domain) => {
            for message in MESSAGES {
                let message = Message::parse(message.as_bytes()).expect("a good message");
                domain.admit(&message).err().iter().for_each(check_refusal);
            }
        }
        Err(error) => assert!(error.to_string().contains("fuzz.json"), "{error}"),
    }
}

/// What one node wraps another one unwraps to the same bytes, and what is no envelope goes out as it is.
pub(crate) fn envelope(input: &[u8]) {
    let payload = Bytes::copy_from_slice(input);
    let field = Deliver::Field("data".to_owned());
    let wrapped = envelope::wrap(&field, ROOM, Some("u\"ser"), &payload);
    let is_text = std::str::from_utf8(input).is_ok();
    if is_text {
        assert_eq!(envelope::unwrap(&field, ROOM, &wrapped), input, "a field that is not read back");
    } else {
        assert_eq!(wrapped, payload, "what is no text travels as it is");
    }
    for deliver in [Deliver::Raw, field, Deliver::Field("ro\\om".to_owned()), Deliver::Wrap, Deliver::Event] {
        let delivered = envelope::unwrap(&deliver, ROOM, input);
        if deliver == Deliver::Wrap && is_text {
            let data = Deliver::Field("data".to_owned());
            assert_eq!(envelope::unwrap(&data, ROOM, &delivered), input, "a wrapping that can't be undone");
        }
    }

    let kind = envelope::kind_of(input);
    let is_json = kind.is_some();
    let label = kind.map(|kind| Label { kind: kind.into(), is_json });
    for label in [None, label.as_ref()] {
        let wrapped = envelope::wrap_event(ROOM, label, input, "node", "run");
        let event = envelope::event(&wrapped, Some("room")).expect("an envelope of our own");
        assert_eq!((event.room.as_deref(), event.origin.as_deref()), (Some(ROOM), Some("node")));
        assert_eq!(event.instance_id.as_deref(), Some("run"));
        assert_eq!(event.kind.as_deref(), Some(label.map_or("message", |label| &*label.kind)));
        let due = if event.is_json { input.trim_ascii() } else { input };
        assert_eq!(event.data, due, "a payload that is not read back");
    }
    if let Some(event) = envelope::event(input, Some("room")) {
        assert_eq!(
            envelope::event(input, None).map(|event| event.data),
            Some(event.data),
            "the room changes the data"
        );
    }
}

fn check_refusal(refusal: &Refusal) {
    for (text, chars_max) in [
        (&refusal.field, FIELD_CHARS_MAX),
        (&refusal.expected, EXPECTED_CHARS_MAX),
        (&refusal.found, FOUND_CHARS_MAX),
    ] {
        assert!(text.chars().count() <= chars_max, "{} characters in a refusal", text.chars().count());
        assert!(!text.chars().any(char::is_control), "a control character in {text:?}");
    }
}

/// All that is built in, and a domain made of a schema.
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let mut registry = Registry::built_in(&BUILT_IN).expect("they don't conflict");
    let schema = SchemaDomain::parse(SCHEMA, "sensors.json").expect("a good schema");
    registry.register(Box::new(schema)).expect("it conflicts with none");
    registry
});
const ROOM: &str = "ro\"om\u{e9}";
const SCHEMA: &str = include_str!("../../deploy/domains/sensors.json");
const MESSAGES: [&str; 3] = [
    r#"{"type":"t"}"#,
    r#"{"type":"reading","room":"r","data":{"sensor":"s","value":1.5,"unit":"C"}}"#,
    r#"{"type":"t","a":[1,2,null,true,"x",{"b":-1e3}],"room":""}"#,
];
