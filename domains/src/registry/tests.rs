//! The registry's own rules, and what holds for every domain behind it.

use super::*;

fn all() -> Registry {
    Registry::built_in(&BUILT_IN).expect("built-in domains don't conflict")
}

fn refusal(text: impl AsRef<[u8]>) -> String {
    all().admit(text.as_ref()).expect_err("it is no event").to_string()
}

/// A domain with any name and types, whose refusals are too long.
struct Own {
    name: String,
    types: Vec<String>,
}

fn own(name: &str, types: &[&str]) -> Box<Own> {
    Box::new(Own { name: name.into(), types: types.iter().map(|name| (*name).to_owned()).collect() })
}

impl Domain for Own {
    fn name(&self) -> &str {
        &self.name
    }

    fn event_types(&self) -> Vec<String> {
        self.types.clone()
    }

    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let long = message.text().repeat(1000);
        Err(Refusal { field: long.clone(), expected: long.clone(), found: long })
    }
}

#[test]
fn a_message_goes_to_the_domain_of_its_type() {
    let registry = all();
    for (text, room) in [
        (r#"{"type":"price_update","instrument":"X","price":1,"ts":1}"#, "X"),
        (r#"{"type":"message","room":"Y","data":1}"#, "Y"),
        (r#"{"type":"event","room":"Z","data":1}"#, "Z"),
    ] {
        assert_eq!(registry.admit(text.as_bytes()).expect(text).room, room);
    }
}

#[test]
fn its_types_are_listed_with_their_domains() {
    let found: Vec<_> = all().event_types().map(|(domain, name)| format!("{domain}.{name}")).collect();
    assert_eq!(found, ["common.event", "chat.message", "trading.price_update"]);
}

#[test]
fn an_unknown_type_is_refused_with_the_known_ones() {
    assert_eq!(
        refusal(r#"{"type":"price","x":1}"#),
        r#"type: found "price", due one of "event" "message" "price_update""#
    );
    let none = Registry::default().admit(br#"{"type":"event"}"#).expect_err("no domain");
    assert_eq!(none.to_string(), r#"type: found "event", due no event: no domain is configured"#);
}

#[test]
fn a_long_list_of_known_types_is_cut_and_counted() {
    let mut registry = Registry::default();
    let names: Vec<String> = (0..TYPES_MAX).map(|n| format!("{n:064}")).collect();
    registry.register(Box::new(Own { name: "many".into(), types: names })).expect("1,024 types fit");
    let refusal = registry.admit(br#"{"type":"x"}"#).expect_err("no such type");
    assert!(refusal.expected.ends_with("\" and 1017 more"), "{}", refusal.expected);
    assert!(refusal.expected.len() <= EXPECTED_CHARS_MAX);
}

#[test]
fn a_type_that_is_none_is_refused() {
    let due = "due a string of at most 64 bytes, the type of the event";
    assert_eq!(refusal("{}"), format!("type: found nothing, {due}"));
    assert_eq!(refusal(r#"{"type":7}"#), format!("type: found 7, {due}"));
    let long = refusal(format!(r#"{{"type":"{}"}}"#, "a".repeat(16 << 20)));
    assert_eq!(long, format!("type: found \"{}…, {due}", "a".repeat(62)));
}

#[test]
fn what_is_no_json_object_is_refused_with_what_it_is() {
    assert_eq!(refusal(""), "found nothing, due a JSON object");
    assert_eq!(refusal(" \n"), "found nothing, due a JSON object");
    assert_eq!(refusal("[1]"), "found [1], due a JSON object");
    assert_eq!(refusal("hello"), "found hello, due a JSON object");
    assert_eq!(refusal("\u{feff}{}"), "found \u{feff}{}, due a JSON object");
    assert_eq!(refusal(b"{\"a\xff"), "found no UTF-8 at byte 3, due a JSON object in UTF-8");
    assert_eq!(refusal(r#"{"type":"event""#), "found no JSON at line 1 column 15, due a JSON object");
    for text in [
        r#"{"type":"event",}"#,
        "{'type':1}",
        r#"{"a":1}x"#,
        r#"{"a":01}"#,
        r#"{"a":NaN}"#,
        "{\"a\":\"\n\"}",
        "{]",
    ] {
        let found = refusal(text);
        assert!(found.starts_with("found no JSON at line "), "{text}: {found}");
    }
}

#[test]
fn a_field_twice_is_refused_however_it_is_written() {
    for text in [
        r#"{"type":"message","room":"a","room":"b","data":1}"#,
        r#"{"type":"message","room":"a","\u0072oom":"a","data":1}"#,
    ] {
        assert_eq!(refusal(text), "room: found it again, due one field of this name");
    }
}

#[test]
fn a_message_has_a_bounded_number_of_fields() {
    let message = |fields: usize| {
        let more: String = (2..fields).map(|n| format!(r#","f{n}":{n}"#)).collect();
        format!(r#"{{"type":"event","room":"r"{more},"data":1}}"#)
    };
    assert!(all().admit(message(127).as_bytes()).is_ok());
    assert_eq!(refusal(message(128)), "found more, due at most 128 fields");
}

#[test]
fn nesting_ends_where_the_parsers_of_receivers_may_end() {
    let message = |nesting: usize| {
        let (open, close) = ("[".repeat(nesting), "]".repeat(nesting));
        format!(r#"{{"type":"message","room":"[[[\"[","data":{open}{close}}}"#)
    };
    assert!(all().admit(message(126).as_bytes()).is_ok());
    let due = "found more, due at most 127 objects and arrays inside each other";
    assert_eq!(refusal(message(127)), due);
    assert_eq!(refusal(message(8 << 20)), due);
}

#[test]
fn brackets_in_strings_are_no_nesting() {
    let text = format!(r#"{{"type":"message","room":"a","data":"\\\"{}"}}"#, "[{".repeat(1000));
    assert!(all().admit(text.as_bytes()).is_ok());
}

#[test]
fn a_domain_cannot_send_a_long_refusal() {
    let mut registry = Registry::default();
    registry.register(own("own", &["x"])).expect("nothing conflicts");
    let refusal = registry.admit(br#"{"type":"x"}"#).expect_err("it refuses all");
    assert!(refusal.to_string().chars().count() < 128 + 512 + 64 + 20, "{refusal}");
}

#[test]
fn no_domain_speaks_in_types_that_the_server_answers_with() {
    for event_type in RESERVED_TYPES {
        let error = all().register(own("own", &[event_type])).expect_err(event_type);
        assert!(matches!(error, Conflict::Reserved { .. }), "{error}");
    }
}

#[test]
fn a_domain_that_conflicts_is_refused_and_changes_nothing() {
    let mut registry = all();
    let long = "a".repeat(65);
    for (domain, error) in [
        (own("chat", &["x"]), "found two domains named \"chat\", due one: rename one of them"),
        (
            own("own", &["x", "message"]),
            "found the event type \"message\" in domains \"chat\" and \"own\", due in one",
        ),
        (own("own", &["x", "x"]), "found the event type \"x\" in domains \"own\" and \"own\", due in one"),
        (
            own("own", &["join"]),
            "found the event type \"join\" in domain \"own\", which the protocol keeps for itself: choose another",
        ),
        (
            own("own", &[]),
            "found 3 event types with those of domain \"own\", due at least one of its own and at most 1024 in all",
        ),
        (
            own("own", &[""]),
            "found the name \"\" in domain \"own\", due 1 to 64 bytes without control characters",
        ),
        (
            own("own", &["a\nb"]),
            "found the name \"a\\nb\" in domain \"own\", due 1 to 64 bytes without control characters",
        ),
        (
            own(&long, &["x"]),
            &format!(
                "found the name {long:?} in domain {long:?}, due 1 to 64 bytes without control characters"
            ),
        ),
    ] {
        assert_eq!(registry.register(domain).expect_err(error).to_string(), error);
    }
    assert_eq!(registry.event_types().count(), 3);
}

#[test]
fn a_name_that_is_not_built_in_is_refused_with_those_that_are() {
    let error = Registry::built_in(&["trading", "weather"]).err().expect("no such domain");
    assert_eq!(error.to_string(), "found the domain \"weather\", due one of trading, chat, common");
    let error = Registry::built_in(&["chat", "chat"]).err().expect("twice");
    assert_eq!(error, Conflict::Twice { name: "chat".into() });
}
