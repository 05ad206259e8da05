//! The first commands of a connection: who we are, and which RESP is spoken.
//!
//! HELLO 3 does all of it in one reply. Where the server doesn't know HELLO or RESP3, AUTH and CLIENT SETNAME do it one
//! by one, in RESP2. SELECT follows where a database is wanted.

use super::{CLIENT_NAME, Outbox, SessionError};
use crate::config::RedisTarget;
use crate::resp::{Frame, Protocol, Value, excerpt};

/// One handshake; begun anew for every connection.
#[derive(Debug, Clone)]
pub(super) struct Handshake {
    username: Option<String>,
    password: Option<String>,
    /// `None` where SELECT isn't needed.
    database: Option<u32>,
    protocol: Protocol,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Not connected.
    Idle,
    Hello,
    Auth,
    SetName,
    Select,
    Done,
}

impl Handshake {
    /// `database` is selected if it isn't 0, where a session always is.
    pub(super) fn new(target: &RedisTarget, database: u32) -> Self {
        Self {
            username: target.username.clone(),
            password: target.password.clone(),
            database: Some(database).filter(|&database| database != 0),
            protocol: Protocol::Resp3,
            step: Step::Idle,
        }
    }

    /// Begins on a fresh connection.
    pub(super) fn begin(&mut self, out: &mut Outbox) {
        self.protocol = Protocol::Resp3;
        self.step = Step::Hello;
        let name = CLIENT_NAME.as_bytes();
        match &self.password {
            Some(password) => {
                let user = self.user().as_bytes();
                out.push(&[b"HELLO", b"3", b"AUTH", user, password.as_bytes(), b"SETNAME", name]);
            }
            None => out.push(&[b"HELLO", b"3", b"SETNAME", name]),
        }
    }

    fn user(&self) -> &str {
        self.username.as_deref().unwrap_or("default")
    }

    /// Forgets the connection.
    pub(super) fn reset(&mut self) {
        self.step = Step::Idle;
    }

    /// Whether the session may begin.
    pub(super) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// The RESP that is spoken.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Takes a reply. Pushes are the caller's to ignore.
    pub(super) fn handle(&mut self, frame: &Frame<'_>, out: &mut Outbox) -> Result<(), SessionError> {
        match self.step {
            Step::Hello => self.handle_hello(frame.value(), out),
            Step::Auth => self.handle_auth(frame.value(), out),
            Step::SetName => {
                // A name is a convenience; a server that refuses it is served all the same.
                self.select(out);
                Ok(())
            }
            Step::Select => self.handle_select(frame.value()),
            Step::Idle | Step::Done => Err(SessionError::Unasked(frame.value().describe())),
        }
    }

    fn handle_hello(&mut self, reply: Value<'_>, out: &mut Outbox) -> Result<(), SessionError> {
        match reply {
            Value::Map => self.select(out),
            // Some proxies take HELLO 3 and go on in RESP2; they say so by the type of their reply.
            Value::Array(_) => {
                self.protocol = Protocol::Resp2;
                self.select(out);
            }
            Value::Error(text) if is_hello_unknown(text) => {
                self.protocol = Protocol::Resp2;
                self.authenticate(out);
            }
            Value::Error(text) => return Err(SessionError::from_reply("HELLO", text, self.user(), "+hello")),
            other => return Err(wrong_reply("HELLO", other, "a map")),
        }
        Ok(())
    }

    fn authenticate(&mut self, out: &mut Outbox) {
        match (&self.username, &self.password) {
            (_, None) => return self.set_name(out),
            (None, Some(password)) => out.push(&[b"AUTH", password.as_bytes()]),
            (Some(user), Some(password)) => out.push(&[b"AUTH", user.as_bytes(), password.as_bytes()]),
        }
        self.step = Step::Auth;
    }

    fn handle_auth(&mut self, reply: Value<'_>, out: &mut Outbox) -> Result<(), SessionError> {
        match reply {
            Value::Text(b"OK") => self.set_name(out),
            // A password where none is needed does no harm, as with HELLO.
            Value::Error(text) if is_password_needless(text) => self.set_name(out),
            // Before Redis 6 a wrong password was `-ERR invalid password`.
            Value::Error(text) if text.starts_with(b"ERR") => {
                return Err(SessionError::PasswordWrong { user: self.user().into(), text: excerpt(text) });
            }
            Value::Error(text) => return Err(SessionError::from_reply("AUTH", text, self.user(), "+auth")),
            other => return Err(wrong_reply("AUTH", other, "OK")),
        }
        Ok(())
    }

    fn set_name(&mut self, out: &mut Outbox) {
        out.push(&[b"CLIENT", b"SETNAME", CLIENT_NAME.as_bytes()]);
        self.step = Step::SetName;
    }

    fn select(&mut self, out: &mut Outbox) {
        let Some(database) = self.database else {
            self.step = Step::Done;
            return;
        };
        out.push(&[b"SELECT", database.to_string().as_bytes()]);
        self.step = Step::Select;
    }

    fn handle_select(&mut self, reply: Value<'_>) -> Result<(), SessionError> {
        match reply {
            Value::Text(b"OK") => {
                self.step = Step::Done;
                Ok(())
            }
            Value::Error(text) => {
                Err(SessionError::from_reply("SELECT of the database", text, self.user(), "+select"))
            }
            other => Err(wrong_reply("SELECT", other, "OK")),
        }
    }
}

/// Unknown commands, wrong versions and forbidden ones alike: the fallback will show what the server can do.
fn is_hello_unknown(text: &[u8]) -> bool {
    let is_full = excerpt(text).contains("max number of clients");
    !is_full && (text.starts_with(b"ERR") || text.starts_with(b"NOPROTO") || text.starts_with(b"NOPERM"))
}

fn is_password_needless(text: &[u8]) -> bool {
    let said = excerpt(text);
    said.contains("without any password configured") || said.contains("no password is set")
}

fn wrong_reply(what: &str, found: Value<'_>, expected: &'static str) -> SessionError {
    SessionError::WrongReply { what: what.into(), found: found.describe(), expected }
}
