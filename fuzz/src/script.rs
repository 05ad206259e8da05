//! The other side of a session with Redis: RESP to say, commands to read, and scripts that mix both with what the relay asks.

use shards::resp::{Frame, Inbox, Protocol, Received, Value};

/// What happens next, as an input tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'i> {
    /// Redis answers all that was asked, as it does when nothing is wrong.
    Answer,
    /// Redis sends these bytes.
    Send(&'i [u8]),
    /// The relay asks for something: a letter, and on what.
    Ask(u8, &'i [u8]),
    /// The connection ends and another one begins.
    Reconnect,
}

/// The steps that `input` tells, one after each [`MARK`]; what comes before the first is sent by Redis.
pub(crate) fn steps(input: &[u8]) -> impl Iterator<Item = Step<'_>> {
    input.split(|byte| *byte == MARK).map(|step| match step {
        [b'!', ..] => Step::Answer,
        [b'~', ..] => Step::Reconnect,
        [b'@', letter, operand @ ..] => Step::Ask(*letter, operand),
        sent => Step::Send(sent),
    })
}

/// A push of strings, in RESP3.
pub(crate) fn push(words: &[&[u8]]) -> Vec<u8> {
    let mut spelled = format!(">{}\r\n", words.len()).into_bytes();
    for word in words {
        spelled.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        spelled.extend_from_slice(word);
        spelled.extend_from_slice(b"\r\n");
    }
    spelled
}

/// The commands in `written`, which a session made, so they must be whole and well spelled.
pub(crate) fn commands(written: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut inbox = Inbox::new();
    let mut buffer = inbox.take_buffer();
    buffer.extend_from_slice(written);
    inbox.put_buffer(buffer);
    let mut commands = Vec::new();
    let mut bytes = 0;
    while let Some(Received::Frame(spelled)) = inbox.take_frame().expect("a session writes RESP") {
        bytes += spelled.len();
        let frame = Frame::decode(Protocol::Resp2, spelled).expect("a session writes RESP2");
        let Value::Array(words) = frame.value() else { panic!("a command is an array") };
        let word = |index| match frame.item(index) {
            Some(Value::Text(text)) => text.to_vec(),
            other => panic!("{other:?} among the words of a command"),
        };
        commands.push((0..words).map(word).collect());
    }
    assert_eq!(bytes, written.len(), "a session wrote half a command");
    commands
}

/// No byte of UTF-8, and none of RESP's own.
const MARK: u8 = 0xff;
