//! What a newcomer asks of a room's past, as it says it: in a join of the JSON dialect, or in a request.

use std::borrow::Cow;

use domains::{Message, Refusal};
use serde::Deserialize;

use crate::command::Since;
use crate::dialect::epoch_of;
use crate::request::{Head, HttpError};

/// The member `resume` of a join.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resume<'a> {
    #[serde(default, borrow)]
    epoch: Cow<'a, str>,
    offset: u64,
}

/// In a join: `"resume":{"epoch":E,"offset":N}` or `"first":"oldest"|"newest"|N`.
pub(super) fn in_message(message: &Message<'_>) -> Result<Option<Since>, Refusal> {
    let resume = message.raw("resume").filter(|resume| *resume != "null");
    let first = message.raw("first").filter(|first| *first != "null");
    match (resume, first) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(message.refuse("first", "either resume or first, and not both")),
        (Some(resume), None) => {
            let due = "an object with a whole number \"offset\" and perhaps a string \"epoch\"";
            let Resume { epoch, offset } =
                serde_json::from_str(resume).map_err(|_| message.refuse("resume", due))?;
            Ok(Some(Since::After { epoch: epoch_of(&epoch), offset }))
        }
        (None, Some(first)) => {
            let text = serde_json::from_str::<String>(first).unwrap_or_else(|_| first.to_owned());
            self::first(&text).ok_or_else(|| message.refuse("first", FIRST_DUE))
        }
    }
}

/// In a request: `?epoch=E&offset=N`, `?last_event_id=E:N`, the field `Last-Event-ID: E:N`, or `?first=...`.
pub(super) fn in_request(head: &Head<'_>) -> Result<Option<Since>, HttpError> {
    let value = |name: &str| -> Result<Option<Cow<'_, str>>, HttpError> {
        Ok(head.query_value(name)?.filter(|value| !value.is_empty()))
    };
    let field = head.last_event_id().map(Cow::Borrowed);
    if let Some(id) = value("last_event_id")?.or(field) {
        // What is none of ours is another server's: it can't be recovered, and the client is told so.
        let (epoch, offset) = id.rsplit_once(':').unwrap_or(("0", "0"));
        return Ok(Some(Since::After { epoch: epoch_of(epoch), offset: offset.parse().unwrap_or(u64::MAX) }));
    }
    let Some(offset) = value("offset")? else {
        if let Some(epoch) = value("epoch")? {
            let due =
                "a number beside it: offset=N, the last publication that came, or no epoch for a newcomer";
            return Err(HttpError::new(400, format!("epoch: found {epoch:?} and no offset, due {due}")));
        }
        // Whoever was here before comes back to its place: EventSource repeats its URL, `first` and all.
        return match value("first")? {
            Some(first) => self::first(&first)
                .ok_or_else(|| HttpError::new(400, format!("first: found {first:?}, due {FIRST_DUE}"))),
            None => Ok(None),
        };
    };
    let Ok(offset) = offset.parse() else {
        let sentence = format!("offset: found {offset:?}, due the number of the last publication that came");
        return Err(HttpError::new(400, sentence));
    };
    let epoch = value("epoch")?.unwrap_or_default();
    Ok(Some(Since::After { epoch: epoch_of(&epoch), offset }))
}

/// In a request that reads a log: the same, or `?since=N`, perhaps with `&epoch=E`.
pub(super) fn in_reading(head: &Head<'_>) -> Result<Option<Since>, HttpError> {
    let is_named = |name: &str| Ok(head.query_value(name)?.is_some_and(|value| !value.is_empty()));
    let is_place = is_named("offset")? || is_named("last_event_id")? || head.last_event_id().is_some();
    match head.query_value("since")? {
        Some(text) if !is_place => match text.parse() {
            Ok(offset) => {
                let epoch = head.query_value("epoch")?.unwrap_or_default();
                Ok(Some(Since::After { epoch: epoch_of(&epoch), offset }))
            }
            Err(_) => {
                Err(HttpError::new(400, format!("since: found {text:?}, due the number of a publication")))
            }
        },
        _ => in_request(head),
    }
}

const FIRST_DUE: &str = "\"oldest\", \"newest\" or how many of the last publications";

/// `Some(None)` where nothing of the past is wanted.
#[expect(clippy::option_option, reason = "no wish is one of the answers")]
fn first(text: &str) -> Option<Option<Since>> {
    match text {
        "oldest" => Some(Some(Since::Oldest)),
        "newest" | "0" => Some(None),
        count => count.parse().ok().map(|count| Some(Since::Last(count))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Option<Since>, String> {
        let message = Message::parse(text.as_bytes()).expect("a message");
        in_message(&message).map_err(|refusal| refusal.to_string())
    }

    fn requested(target: &str, fields: &str) -> Result<Option<Since>, u16> {
        let octets = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let head = crate::request::parse(octets.as_bytes()).expect("sound").expect("whole");
        in_request(&head).map_err(|error| error.status)
    }

    fn after(epoch: Option<u64>, offset: u64) -> Result<Option<Since>, u16> {
        Ok(Some(Since::After { epoch, offset }))
    }

    #[test]
    fn a_join_says_what_it_wants_of_the_past() {
        assert_eq!(said(r#"{"type":"join","room":"a"}"#), Ok(None));
        assert_eq!(said(r#"{"type":"join","room":"a","first":"newest","resume":null}"#), Ok(None));
        assert_eq!(said(r#"{"type":"join","first":"oldest"}"#), Ok(Some(Since::Oldest)));
        assert_eq!(said(r#"{"type":"join","first":3}"#), Ok(Some(Since::Last(3))));
        let resume = Since::After { epoch: Some(0x1f), offset: 4 };
        assert_eq!(said(r#"{"type":"join","resume":{"epoch":"1f","offset":4}}"#), Ok(Some(resume)));
        let any = Since::After { epoch: None, offset: 0 };
        assert_eq!(said(r#"{"type":"join","resume":{"offset":0}}"#), Ok(Some(any)));
    }

    #[test]
    fn a_wish_that_is_none_names_its_field() {
        for (text, field) in [
            (r#"{"type":"join","first":-1}"#, "first: found -1, due \"oldest\""),
            (r#"{"type":"join","first":"all"}"#, "first: found \"all\""),
            (r#"{"type":"join","resume":7}"#, "resume: found 7, due an object"),
            (r#"{"type":"join","resume":{"epoch":"a"}}"#, "resume: found"),
            (r#"{"type":"join","resume":{"offset":1},"first":1}"#, "first: found 1, due either"),
        ] {
            let refusal = said(text).expect_err(text);
            assert!(refusal.starts_with(field), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_request_says_it_in_its_query_or_as_event_source_does() {
        assert_eq!(requested("/ws?room=a", ""), Ok(None));
        assert_eq!(requested("/ws?room=a&offset=7&epoch=1f", ""), after(Some(0x1f), 7));
        assert_eq!(requested("/ws?room=a&offset=7&epoch=", ""), after(None, 7));
        assert_eq!(requested("/ws?room=a&last_event_id=1f:7", ""), after(Some(0x1f), 7));
        assert_eq!(requested("/sse?room=a", "Last-Event-ID: 1f:7\r\n"), after(Some(0x1f), 7));
        assert_eq!(requested("/sse?room=a", "Last-Event-ID: 17\r\n"), after(Some(0), 0));
        let repeated = requested("/sse?room=a&first=2", "Last-Event-ID: 1f:7\r\n");
        assert_eq!(repeated, after(Some(0x1f), 7), "EventSource repeats its URL");
        assert_eq!(requested("/ws?room=a&first=2&offset=1", ""), after(None, 1));
        assert_eq!(requested("/ws?room=a&first=oldest", ""), Ok(Some(Since::Oldest)));
        assert_eq!(requested("/ws?room=a&first=newest", ""), Ok(None));
        assert_eq!(requested("/ws?room=a&offset=seven", ""), Err(400));
        assert_eq!(requested("/ws?room=a&first=-2", ""), Err(400));
    }

    #[test]
    fn an_epoch_that_no_number_goes_with_is_not_ignored() {
        assert_eq!(requested("/history?room=a&epoch=1f", ""), Err(400));
        assert_eq!(requested("/ws?room=a&epoch=1f&first=2", ""), Err(400));
        assert_eq!(requested("/ws?room=a&epoch=", ""), Ok(None));
        let read = |target: &str| {
            let octets = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let head = crate::request::parse(octets.as_bytes()).expect("whole").expect("a head");
            in_reading(&head).map_err(|error| error.status)
        };
        assert_eq!(read("/history?room=a&since=7&epoch=1f"), after(Some(0x1f), 7));
        assert_eq!(read("/history?room=a&since=7"), after(None, 7));
        assert_eq!(read("/history?room=a&since=7&offset=3&epoch=1f"), after(Some(0x1f), 3));
        assert_eq!(read("/history?room=a&epoch=1f"), Err(400));
        assert_eq!(read("/history?room=a&since=x"), Err(400));
    }
}
