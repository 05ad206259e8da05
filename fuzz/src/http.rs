//! Requests as anybody sends them.

use std::borrow::Cow;
use std::sync::LazyLock;

use shards::auth::Gate;
use shards::config::{self, Config, File, Inputs, Origins};
use shards::limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use shards::request::{self, Head, HttpError, Method};
use shards::route::{Routes, is_name, plain_name};

use crate::cut;

/// A head says the same however it is cut, keeps to the bounds, is understood when what was understood of it is sent again,
/// and whatever is answered is one answer.
pub(crate) fn head(input: &[u8]) {
    let whole = arrive(&[input]);
    assert_eq!(arrive(&cut::pieces(input)), whole, "another result in pieces");
    assert_eq!(arrive(&cut::octets(input)), whole, "another result octet by octet");
    match request::parse(input) {
        Ok(Some(head)) => {
            check_head(&head, input);
            judge(&head);
            check_again(&head);
        }
        Ok(None) => assert!(input.len() < HEAD_BYTES_MAX, "more is awaited beyond the bound"),
        Err(error) => check_answer(&error),
    }
}

/// The query of a handshake: what it joins and where its room's publications go has a name that a room may have.
pub(crate) fn query(input: &[u8]) {
    let Ok(query) = std::str::from_utf8(input) else { return };
    let request = format!("GET /?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
    let Ok(Some(head)) = request::parse(request.as_bytes()) else { return };
    let value = |name: &str| head.query_value(name);
    let rooms_max = CONFIG.bounds.rooms_per_connection_max;
    for (listener, path) in PATHS.iter().enumerate().map(|(index, path)| (index % CONFIG.listen.len(), path))
    {
        if let Ok(joined) = ROUTES.resolve(listener, path, value) {
            assert!(joined.rooms.len() <= rooms_max, "more rooms than a connection may be in");
            for room in &joined.rooms {
                assert!(is_name(plain_name(room)), "joined {room:?}, which is no room's name");
            }
        }
        if let Ok(room) = ROUTES.room_to_publish(listener, path, value) {
            assert!(is_name(plain_name(&room)), "published to {room:?}, which is no room's name");
        }
    }
    for name in ["room", "room ", "a", ""] {
        match head.query_value(name) {
            Ok(value) => assert!(value.is_none_or(|value| value.len() <= query.len()), "a value that grew"),
            Err(error) => check_answer(&error),
        }
    }
}

/// What a listener makes of a head that arrives in `pieces`: the bytes it takes, or the refusal.
fn arrive(pieces: &[&[u8]]) -> Result<Option<usize>, HttpError> {
    let mut held = Vec::new();
    let mut bytes_before = 0;
    for piece in pieces {
        held.extend_from_slice(piece);
        if !request::is_worth_parsing(&held, bytes_before) {
            continue;
        }
        if let Some(head) = request::parse(&held)? {
            return Ok(Some(head.bytes));
        }
        bytes_before = held.len();
    }
    // What isn't worth parsing says nothing new.
    request::parse(&held).map(|head| head.map(|head| head.bytes))
}

fn check_head(head: &Head<'_>, input: &[u8]) {
    assert!(head.bytes <= input.len().min(HEAD_BYTES_MAX), "a head of {} bytes", head.bytes);
    assert!(input[..head.bytes].ends_with(b"\r\n\r\n"), "a head that doesn't end with an empty line");
    assert!(head.path.starts_with('/') || head.path == "*", "the path {:?}", head.path);
    assert!(!head.path.contains('?'), "a query in the path");
    let lines = input[..head.bytes].iter().filter(|octet| **octet == b'\n').count();
    assert!(lines <= HEAD_FIELDS_MAX + 3, "more fields than the bound");
}

/// Everything that is asked of a head; none of it panics, and each refusal is an answer.
fn judge(head: &Head<'_>) {
    let gates = [
        Gate::new(None, true),
        Gate::new(Some("key".to_owned()), false),
        Gate::new(None, false).with_admin(true),
    ];
    for gate in &gates {
        for origins in [Origins::SameHost, Origins::Any, Origins::List(vec!["https://a:443".to_owned()])] {
            gate.admits_page(&origins, head).err().iter().for_each(check_answer);
        }
        gate.admits(head).err().iter().for_each(check_answer);
        gate.admits_on_admin(head).err().iter().for_each(check_answer);
        gate.admits_handshake(head).err().iter().for_each(check_answer);
    }
    let _ = (head.keep_alive(), head.expects_continue(), head.forwarded(), head.wants_upgrade());
    match head.decoded_path() {
        Ok(path) => assert!(path.len() <= head.path.len(), "a path that grew"),
        Err(error) => check_answer(&error),
    }
    match head.websocket_key() {
        Ok(key) => {
            let mut out = Vec::new();
            request::switching_protocols(&key, None, &mut out);
            assert!(key.as_str().len() == 28 && out.ends_with(b"\r\n\r\n"), "a 101 of another form");
            assert!(
                head.method == Method::Get && head.content_length().unwrap_or(0) == 0,
                "an upgrade with a body"
            );
        }
        Err(error) => check_answer(&error),
    }
}

/// A proxy that sends on what this parser understood is understood alike.
fn check_again(head: &Head<'_>) {
    let query = if head.query.is_empty() { String::new() } else { format!("?{}", head.query) };
    let length = head.content_length().map_or(String::new(), |bytes| format!("Content-Length: {bytes}\r\n"));
    let host = if head.host().is_empty() { "a" } else { head.host() };
    let method = head.method.name();
    let again = format!("{method} {}{query} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n", head.path);
    if again.len() > HEAD_BYTES_MAX {
        return;
    }
    let read = request::parse(again.as_bytes()).expect("it was understood").expect("it is whole");
    assert_eq!((read.method, read.path, read.query), (head.method, head.path, head.query), "{again:?}");
    assert_eq!((read.host(), read.content_length()), (host, head.content_length()), "{again:?}");
}

/// One answer and nothing behind it: no line of a request ends up as a line of the answer.
fn check_answer(error: &HttpError) {
    assert!((400..=599).contains(&error.status), "a refusal with {}", error.status);
    assert!(!error.message.chars().any(char::is_control), "a control character in {:?}", error.message);
    let mut out = Vec::new();
    error.answer(false, true, &mut out);
    let text = String::from_utf8(out).expect("an answer is text");
    let (fields, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(fields.starts_with(&format!("HTTP/1.1 {} ", error.status)), "{fields:?}");
    assert!(
        fields.contains(&format!("\r\nContent-Length: {}", body.len())),
        "{fields:?} of {} bytes",
        body.len()
    );
    assert_eq!(body, format!("{}\n", error.message), "another message");
}

/// Every preset, on one process.
static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let presets = config::preset_names().map(str::to_owned).collect();
    let file = File { name: "fuzz.toml", text: "echo_route = true\nbroker = \"local\"\n" };
    let inputs =
        Inputs { file: Some(file), presets: Some(presets), node_id: "node".to_owned(), ..Inputs::default() };
    config::load(&inputs).unwrap_or_else(|errors| panic!("{errors}")).config
});
static ROUTES: LazyLock<Routes> = LazyLock::new(|| Routes::new(&CONFIG));
/// Every route's, and one that none has.
static PATHS: LazyLock<Vec<Cow<'static, str>>> = LazyLock::new(|| {
    let routes = CONFIG.routes.iter().map(|route| Cow::Owned(route.path.clone()));
    routes.chain([Cow::Borrowed("/ws"), Cow::Borrowed("/nowhere")]).collect()
});
