//! A connection of the JSON dialect: it says and hears `{"type","room","data"}`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tungstenite::Message;

use super::client::Client;

/// One that waits for what it is to hear.
pub struct Speaker(Client);

impl Speaker {
    #[track_caller]
    pub fn consumer(address: SocketAddr) -> Self {
        Self::at(address, "/ws")
    }

    #[track_caller]
    pub fn at(address: SocketAddr, target: &str) -> Self {
        Self(Client::connect(address, target))
    }

    /// Upgraded at `target` with the subprotocol that it offers.
    #[track_caller]
    pub fn offering(address: SocketAddr, target: &str, protocol: &str) -> Self {
        Self(Client::offering(address, target, protocol))
    }

    /// A consumer that has joined `room`.
    #[track_caller]
    pub fn in_room(address: SocketAddr, room: &str) -> Self {
        let mut speaker = Self::consumer(address);
        speaker.join(room);
        speaker
    }

    #[track_caller]
    pub fn ingestor(address: SocketAddr) -> Self {
        Self::at(address, "/ws/ingest")
    }

    /// Joins `room` and hears nothing before the answer.
    #[track_caller]
    pub fn join(&mut self, room: &str) {
        self.say(&json!({ "type": "join", "room": room }));
        let joined = self.hear();
        assert_eq!((&joined["type"], &joined["room"]), (&"joined".into(), &room.into()), "{joined}");
        assert!(joined["data"]["epoch"].is_string() && joined["data"]["offset"].is_u64(), "{joined}");
    }

    /// Leaves `room` and hears nothing before the answer.
    #[track_caller]
    pub fn leave(&mut self, room: &str) {
        self.say(&json!({ "type": "leave", "room": room }));
        assert_eq!(self.hear(), json!({ "type": "left", "room": room, "data": null }));
    }

    #[track_caller]
    pub fn say(&mut self, message: &Value) {
        self.say_text(&message.to_string());
    }

    /// Says `text` whatever it is.
    #[track_caller]
    pub fn say_text(&mut self, text: &str) {
        self.0.send_text(text);
    }

    /// Says `bytes` in a binary frame.
    #[track_caller]
    pub fn say_binary(&mut self, bytes: &[u8]) {
        self.0.send(Message::binary(bytes.to_vec()));
    }

    /// The next frame, as it stood on the wire.
    #[track_caller]
    pub fn hear_numbered(&mut self) -> String {
        self.0.next_text()
    }

    /// The next frame; a publication without its number, which comes last in it.
    #[track_caller]
    pub fn hear_text(&mut self) -> String {
        let text = self.hear_numbered();
        match text.strip_suffix('}').and_then(|text| text.rsplit_once(r#","offset":"#)) {
            Some((text, number)) if number.bytes().all(|octet| octet.is_ascii_digit()) => format!("{text}}}"),
            _ => text,
        }
    }

    #[track_caller]
    pub fn hear(&mut self) -> Value {
        let text = self.hear_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// The next frame must be a publication of this type and room, or say before it that Redis was away; returns its data.
    #[track_caller]
    pub fn hear_data(&mut self, kind: &str, room: &str) -> Value {
        let mut frame = self.hear();
        while frame["type"] == "gap" && frame["data"]["reason"] == "broker" {
            frame = self.hear();
        }
        assert_eq!((&frame["type"], &frame["room"]), (&kind.into(), &room.into()), "{frame}");
        frame["data"].take()
    }

    /// The next frame must be an error of this code; returns the field it names.
    #[track_caller]
    pub fn hear_refusal(&mut self, code: &str) -> String {
        let frame = self.hear();
        assert_eq!((&frame["type"], &frame["data"]["code"]), (&"error".into(), &code.into()), "{frame}");
        let [field, expected, found, message] =
            ["field", "expected", "found", "message"].map(|part| frame["data"][part].as_str());
        let (Some(field), Some(expected), Some(found)) = (field, expected, found) else {
            panic!("field, expected and found are texts: {frame}")
        };
        let named = if field.is_empty() { String::new() } else { format!("{field}: ") };
        assert_eq!(message, Some(format!("{named}found {found}, due {expected}").as_str()));
        field.to_owned()
    }

    /// What it says is answered with an error of this code; returns the field that the error names.
    #[track_caller]
    pub fn refused(&mut self, message: &Value, code: &str) -> String {
        self.say(message);
        self.hear_refusal(code)
    }

    #[track_caller]
    pub fn hang_up(self) {
        self.0.leave();
    }
}

/// The system's own example of an event, for `instrument` and with `price`.
pub fn price(instrument: &str, price: f64) -> Value {
    json!({ "type": "price_update", "instrument": instrument, "price": price, "ts": 1_710_000_000 })
}
