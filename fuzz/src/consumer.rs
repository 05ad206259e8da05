//! What `corecast consume` reads: events from Redis, and the letters of those that died.

use corecast_consumer::{DeadLetter, EVENT_BYTES_MAX, Event, TYPE_BYTES_MAX};

/// An event says what its text says, and its one-line form is the same event.
pub(crate) fn event(input: &[u8]) {
    let event = match Event::parse(input) {
        Ok(event) => event,
        Err(error) => {
            // It ends in a log line, which cuts what it quotes.
            assert!(
                error.to_string().len() <= SENTENCE_BYTES_MAX,
                "an error of {} bytes",
                error.to_string().len()
            );
            return;
        }
    };
    assert!(input.len() <= EVENT_BYTES_MAX && event.kind().len() <= TYPE_BYTES_MAX, "beyond its bounds");
    assert_eq!(event.text().as_bytes(), input, "another text");
    let line = event.line();
    assert!(!line.contains('\n'), "a line end in a line");
    let again: Event = line.parse().expect("the same event");
    assert_eq!((again.id(), again.kind(), again.source()), (event.id(), event.kind(), event.source()));
    assert_eq!((again.timestamp(), again.payload()), (event.timestamp(), event.payload()));
}

/// A letter that is read can be written, as one line that reads as the same letter.
pub(crate) fn dead_letter(input: &[u8]) {
    let Ok(line) = std::str::from_utf8(input) else { return };
    let Ok(letter) = DeadLetter::from_json(line) else { return };
    let written = letter.to_json();
    assert!(!written.contains('\n'), "a line end in a line");
    let again = DeadLetter::from_json(&written).expect("what was written is read");
    assert_eq!(again.event.line(), letter.event.line(), "another event");
    assert!(letter.reason.starts_with(&again.reason), "another reason");
    assert_eq!(
        (again.attempts, &again.home, &again.server_id, again.died_at),
        (letter.attempts, &letter.home, &letter.server_id, letter.died_at)
    );
    assert_eq!(again.to_json(), written, "another letter each time");
}

const SENTENCE_BYTES_MAX: usize = 4 * 1024;
