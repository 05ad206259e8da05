//! Every rule of a schema with its sentence, the files in `deploy/domains`, and what a file must not do.

use serde_json::json;

use super::*;
use crate::Registry;
use crate::limits::VALUE_BYTES_MAX;

const SENSORS: &str = include_str!("../../../deploy/domains/sensors.json");
const DEPLOYMENTS: &str = include_str!("../../../deploy/domains/deployments.json");

const READING: &str = r#"{"type":"sensor_reading","site":"plant-7","sensor":"t-1","at":"2026-01-01T00:00:00Z","values":[{"quantity":"temperature","value":21.50}]}"#;

fn registry(text: &str) -> Registry {
    let domain = SchemaDomain::parse(text, "test.json").expect("the file is good");
    let mut registry = Registry::default();
    registry.register(Box::new(domain)).expect("nothing conflicts");
    registry
}

fn file(schema: Value) -> String {
    json!({"name": "n", "event_types": ["t"], "room": "/room", "schema": schema}).to_string()
}

fn error(schema: Value) -> String {
    SchemaDomain::parse(&file(schema), "test.json").expect_err("the schema is none").to_string()
}

/// What becomes of `{"type":"t","room":"r","x":x}` where `x` has to fit `rule`.
fn refusal(rule: Value, x: Value) -> String {
    let registry = registry(&file(json!({"properties": {"x": rule}})));
    let text = json!({"type": "t", "room": "r", "x": x}).to_string();
    registry.admit(text.as_bytes()).expect_err(&text).to_string()
}

#[test]
fn a_reading_goes_to_its_site_as_it_was_written() {
    let event = registry(SENSORS).admit(READING.as_bytes()).expect("it is a reading");
    assert_eq!(event.room, "plant-7");
    assert_eq!(event.event_type, "sensor_reading");
    assert_eq!(event.key.as_deref(), Some("t-1"));
    assert_eq!(event.data, READING.as_bytes());
}

#[test]
fn a_wrong_reading_is_refused_by_the_path_of_its_field() {
    for (good, bad, expected) in [
        ("21.50", "\"21.50\"", "values[0].value: found \"21.50\", due a value of type number"),
        ("21.50", "-300", "values[0].value: found -300, due at least -273.15"),
        (
            "\"temperature\"",
            "\"wind\"",
            r#"values[0].quantity: found "wind", due one of ["temperature","humidity","pressure"]"#,
        ),
        ("\"t-1\"", "\"T 1\"", "sensor: found \"T 1\", due a text that matches ^[a-z0-9-]{1,32}$"),
        ("2026-01-01T00:00:00Z", "today", "at: found \"today\", due a text of the format date-time"),
        ("\"site\":\"plant-7\",", "", "site: found nothing, due a value, since the field is required"),
        ("\"site\":", "\"colour\":7,\"site\":", "colour: found 7, due no such field"),
        (
            "\"plant-7\"",
            "\"a\\u0000b\"",
            "site: found \"a\\u0000b\", due a room's name: a string of 1 to 255 bytes without control characters",
        ),
    ] {
        let text = READING.replacen(good, bad, 1);
        assert_ne!(text, READING);
        assert_eq!(registry(SENSORS).admit(text.as_bytes()).expect_err(&text).to_string(), expected);
    }
}

#[test]
fn a_finished_deployment_has_an_outcome() {
    let registry = registry(DEPLOYMENTS);
    let started = br#"{"type":"deployment_started","deployment":{"service":"api","version":"1"}}"#;
    let event = registry.admit(started).expect("it is a deployment");
    assert_eq!((event.room.as_str(), event.key), ("api", None));
    let finished = br#"{"type":"deployment_finished","deployment":{"service":"api","version":"1"}}"#;
    assert_eq!(
        registry.admit(finished).expect_err("no outcome").to_string(),
        "deployment.outcome: found nothing, due a value, since the field is required"
    );
}

#[test]
fn every_rule_has_its_sentence() {
    for (rule, x, expected) in [
        (
            json!({"type": ["integer", "null"]}),
            json!("a"),
            "x: found \"a\", due a value of type null or integer",
        ),
        (json!({"const": {"a": 1}}), json!(1), "x: found 1, due {\"a\":1}"),
        (json!({"maximum": 5}), json!(6), "x: found 6, due at most 5"),
        (json!({"exclusiveMinimum": 5}), json!(5), "x: found 5, due more than 5"),
        (json!({"exclusiveMaximum": 5}), json!(5), "x: found 5, due less than 5"),
        (json!({"multipleOf": 5}), json!(6), "x: found 6, due a multiple of 5"),
        (json!({"minLength": 2}), json!("ä"), "x: found \"ä\", due at least 2 characters"),
        (json!({"maxLength": 1}), json!("ab"), "x: found \"ab\", due at most 1 characters"),
        (json!({"minItems": 1}), json!([]), "x: found [], due at least 1 items"),
        (json!({"maxItems": 1}), json!([1, 2]), "x: found [1,2], due at most 1 items"),
        (json!({"minProperties": 1}), json!({}), "x: found {}, due at least 1 fields"),
        (json!({"maxProperties": 0}), json!({"a": 1}), "x: found {\"a\":1}, due at most 0 fields"),
        (json!({"uniqueItems": true}), json!([1, 1]), "x: found [1,1], due items that are all different"),
        (json!(false), json!(1), "x: found 1, due no value here"),
        (
            json!({"propertyNames": {"maxLength": 1}}),
            json!({"ab": 1}),
            "x: found \"ab\", due names of fields that are each at most 1 characters",
        ),
        (json!({"unevaluatedProperties": false}), json!({"a": 1}), "x.a: found 1, due no such field"),
        (
            json!({"anyOf": [{"type": "null"}]}),
            json!(1),
            "x: found 1, due what the schema says at /properties/x/anyOf",
        ),
        (
            json!({"contains": {"const": 1}}),
            json!([]),
            "x: found [], due what the schema says at /properties/x/contains",
        ),
        (
            json!({"items": {"items": {"type": "null"}}}),
            json!([[null, 1]]),
            "x[0][1]: found 1, due a value of type null",
        ),
        (
            json!({"properties": {"a/b~c": {"type": "null"}}}),
            json!({"a/b~c": 1}),
            "x.a/b~c: found 1, due a value of type null",
        ),
    ] {
        assert_eq!(refusal(rule, x), expected);
    }
}

#[test]
fn a_refusal_repeats_at_most_64_characters_of_the_message() {
    let found = refusal(json!({"type": "null"}), json!("ä".repeat(20_000)));
    assert_eq!(found, format!("x: found \"{}…, due a value of type null", "ä".repeat(62)));
}

#[test]
fn an_event_for_a_schema_has_a_bounded_size() {
    let registry = registry(&file(json!({})));
    let message = |bytes: usize| {
        let frame = r#"{"type":"t","room":"r","x":""}"#.len();
        format!(r#"{{"type":"t","room":"r","x":"{}"}}"#, "a".repeat(bytes - frame))
    };
    assert!(registry.admit(message(VALUE_BYTES_MAX).as_bytes()).is_ok());
    assert_eq!(
        registry.admit(message(VALUE_BYTES_MAX + 1).as_bytes()).expect_err("too long").to_string(),
        "found 65537 bytes, due at most 65536 bytes for an event of type t"
    );
}

#[test]
fn a_field_twice_is_refused_below_the_top_too() {
    let text = br#"{"type":"t","room":"r","x":{"a":1,"a":2}}"#;
    let refusal = registry(&file(json!({}))).admit(text).expect_err("a is there twice");
    assert!(refusal.found.starts_with("a field twice in one object"), "{refusal}");
}

#[test]
fn a_room_or_key_that_is_not_there_is_refused_by_its_path() {
    let text = r#"{"name":"n","event_types":["t"],"room":"/a/0","key":"/b~1c","schema":true}"#;
    for (message, start) in [
        (r#"{"type":"t"}"#, "a[0]: found nothing, due a room's name"),
        (r#"{"type":"t","a":[7]}"#, "a[0]: found 7, due a room's name"),
        (r#"{"type":"t","a":["r"]}"#, "b/c: found nothing, due a room's name"),
    ] {
        let refusal = registry(text).admit(message.as_bytes()).expect_err(message).to_string();
        assert!(refusal.starts_with(start), "{refusal}");
    }
    let event = registry(text).admit(br#"{"type":"t","a":["r"],"b/c":"k"}"#).expect("both are there");
    assert_eq!((event.room.as_str(), event.key.as_deref()), ("r", Some("k")));
}

#[test]
fn a_file_that_is_no_domain_is_refused_with_place_and_form() {
    for (text, start) in [
        ("", "test.json: EOF while parsing a value at line 1 column 0; due a JSON object with name"),
        (r#"{"name":"n"}"#, "test.json: missing field `event_types` at line 1 column 12; due"),
        (r#"{"nam":"n"}"#, "test.json: unknown field `nam`, expected one of"),
        (
            r#"{"name":"n","event_types":[],"room":"/r","schema":{"type":"null","type":"object"}}"#,
            "test.json: a field twice in one object at line 1 column",
        ),
        (
            r#"{"name":"n","event_types":[],"room":"site","schema":{}}"#,
            "test.json: found \"site\" as room, due a JSON pointer to a field, such as \"/sensor/id\"",
        ),
        (
            r#"{"name":"n","event_types":[],"room":"/a","key":"/a~2","schema":{}}"#,
            "test.json: found \"/a~2\" as key, due a JSON pointer",
        ),
        (r#"{"name":"n","event_types":[],"room":"","schema":{}}"#, "test.json: found \"\" as room, due"),
    ] {
        let error = SchemaDomain::parse(text, "test.json").expect_err(text).to_string();
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn a_reference_out_of_the_file_is_refused_when_the_file_is_read() {
    for uri in ["https://example.com/a.json", "file:///etc/passwd", "other.json", "urn:example:a"] {
        for schema in [json!({"$ref": uri}), json!({"$defs": {"unused": {"items": {"$ref": uri}}}})] {
            let error = error(schema);
            assert!(error.starts_with("test.json: found a $ref to "), "{error}");
            assert!(error.contains(uri), "{error}");
            assert!(error.ends_with("nothing is fetched, copy that schema into $defs"), "{error}");
        }
    }
}

#[test]
fn a_reference_within_the_file_is_followed() {
    let rule = json!({"$ref": "#/$defs/small", "$defs": {}});
    let schema = json!({"properties": {"x": rule}, "$defs": {"small": {"maximum": 3}}});
    let text = br#"{"type":"t","room":"r","x":4}"#;
    let refusal = registry(&file(schema)).admit(text).expect_err("4 is more than 3");
    assert_eq!(refusal.to_string(), "x: found 4, due at most 3");
}

#[test]
fn a_schema_that_breaks_its_draft_is_refused_by_its_path() {
    for (schema, start) in [
        (json!({"properties": {"x": {"type": "strnig"}}}), "test.json: schema/properties/x/type: "),
        (json!({"$ref": "#/$defs/missing"}), "test.json: schema: Pointer '/$defs/missing' does not exist"),
        (json!({"properties": {"x": {"format": "dote-time"}}}), "test.json: schema/properties/x"),
        (json!(7), "test.json: schema: "),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
            "test.json: found $schema \"http://json-schema.org/draft-07/schema#\", due \"https://json-schema.org/draft/2020-12/schema\" or none",
        ),
    ] {
        let error = error(schema);
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn a_pattern_that_could_backtrack_or_fill_memory_is_refused() {
    for pattern in ["(a)\\1", "(?=a)b", "^.{0,404600}$", "(a{1000}){1000}"] {
        let error = error(json!({"properties": {"x": {"pattern": pattern}}}));
        assert!(error.starts_with("test.json: schema/properties/x/pattern: "), "{error}");
    }
}

#[test]
fn the_largest_patterns_that_compile_read_an_empty_text() {
    let compiled = (5..13).map(|exponent| format!("^.{{0,{}}}$", 1 << exponent)).filter_map(|pattern| {
        SchemaDomain::parse(&file(json!({"properties": {"x": {"pattern": pattern}}})), "test.json").ok()
    });
    let mut patterns = 0;
    for domain in compiled {
        let mut registry = Registry::default();
        registry.register(Box::new(domain)).expect("nothing conflicts");
        assert!(registry.admit(br#"{"type":"t","room":"r","x":""}"#).is_ok());
        patterns += 1;
    }
    assert!(
        (1..8).contains(&patterns),
        "{patterns} of 8 patterns compiled: the bound lies between none and all"
    );
}

#[test]
fn schemas_that_lead_to_each_other_for_one_value_come_to_an_end() {
    let others = json!({"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}});
    for schema in [json!({"$ref": "#"}), json!({"$ref": "#/$defs/a", "$defs": others})] {
        assert!(registry(&file(schema)).admit(br#"{"type":"t","room":"r","x":""}"#).is_ok());
    }
}

#[test]
fn a_schema_of_itself_is_checked_as_deep_as_messages_nest() {
    let schema = json!({"type": "object", "properties": {"x": {"$ref": "#"}}});
    let registry = registry(&file(schema));
    let message = |inner: &str| {
        let (open, close) = ("{\"x\":".repeat(125), "}".repeat(125));
        format!(r#"{{"type":"t","room":"r","x":{open}{inner}{close}}}"#)
    };
    assert!(registry.admit(message("{}").as_bytes()).is_ok());
    let refusal = registry.admit(message("1").as_bytes()).expect_err("1 is no object");
    assert_eq!((refusal.found.as_str(), refusal.expected.as_str()), ("1", "a value of type object"));
}
