//! The JSON dialect as a client reads it: which of the server's frames are publications, and which are answers.

use std::borrow::Cow;

use serde::Deserialize;

/// What a text frame of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something that was published, whatever its type.
    Publication,
    /// A join or leave was done: `{"type":"joined","room":..,"data":null}`.
    Done,
    /// What was asked for by a message went nowhere.
    Error,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

impl Kind {
    /// Of `text`; what is no object with a `type` is a publication.
    pub fn of(text: &str) -> Self {
        let Ok(Envelope { kind }) = serde_json::from_str(text) else { return Self::Publication };
        match kind.as_ref() {
            "joined" | "left" => Self::Done,
            "error" => Self::Error,
            _ => Self::Publication,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_publications_by_their_type() {
        for (text, kind) in [
            (r#"{"type":"joined","room":"a","data":null}"#, Kind::Done),
            (r#"{"room":"a", "type" : "error", "data":{"code":"role"}}"#, Kind::Error),
            (r#"{"type":"price_update","room":"a","data":{"type":"error"}}"#, Kind::Publication),
            (r#"{"room":"a","data":"error"}"#, Kind::Publication),
            ("\"error\"", Kind::Publication),
            ("error", Kind::Publication),
        ] {
            assert_eq!(Kind::of(text), kind, "{text}");
        }
    }
}
