//! The first commands of a connection: who we are, and which RESP is spoken.
//!
//! HELLO 3 does all of it in one reply. Where the server doesn't know HELLO or RESP3, AUTH and CLIENT SETNAME do it one
//! by one, in RESP2. SELECT follows where a database is wanted, and ROLE where the server has to be a primary.

use super::{CLIENT_NAME, Outbox, SessionError};
use crate::config::{RedisAddress, RedisTarget};
use crate::resp::{Frame, Protocol, Value, excerpt};

/// One handshake; begun anew for every connection.
#[derive(Debug, Clone)]
pub(super) struct Handshake {
    username: Option<String>,
    password: Option<String>,
    /// `None` where SELECT isn't needed.
    database: Option<u32>,
    /// Only a primary will do: its address came from somebody who may be behind.
    needs_primary: bool,
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
    Role,
    Done,
}

impl Handshake {
    /// `database` is selected if it isn't 0, where a session always is.
    pub(super) fn new(target: &RedisTarget, database: u32) -> Self {
        Self {
            username: target.username.clone(),
            password: target.password.clone(),
            database: Some(database).filter(|&database| database != 0),
            needs_primary: matches!(target.address, RedisAddress::Sentinel(_)),
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

    pub(super) fn user(&self) -> &str {
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
            Step::Select => self.handle_select(frame.value(), out),
            Step::Role => self.handle_role(frame),
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
            return self.ask_role(out);
        };
        out.push(&[b"SELECT", database.to_string().as_bytes()]);
        self.step = Step::Select;
    }

    fn handle_select(&mut self, reply: Value<'_>, out: &mut Outbox) -> Result<(), SessionError> {
        match reply {
            Value::Text(b"OK") => {
                self.ask_role(out);
                Ok(())
            }
            Value::Error(text) => {
                Err(SessionError::from_reply("SELECT of the database", text, self.user(), "+select"))
            }
            other => Err(wrong_reply("SELECT", other, "OK")),
        }
    }

    fn ask_role(&mut self, out: &mut Outbox) {
        if !self.needs_primary {
            self.step = Step::Done;
            return;
        }
        out.push(&[b"ROLE"]);
        self.step = Step::Role;
    }

    fn handle_role(&mut self, frame: &Frame<'_>) -> Result<(), SessionError> {
        match (frame.value(), frame.item(0)) {
            (_, Some(Value::Text(b"master"))) => {
                self.step = Step::Done;
                Ok(())
            }
            (_, Some(Value::Text(b"slave"))) => Err(SessionError::NoPrimary("replica".to_owned())),
            (_, Some(Value::Text(role))) => Err(SessionError::NoPrimary(excerpt(role))),
            (Value::Error(text), _) => Err(SessionError::from_reply("ROLE", text, self.user(), "+role")),
            (other, _) => Err(wrong_reply("ROLE", other, "a role")),
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

#[cfg(test)]
mod tests {
    use super::super::tests::{commands, target};
    use super::*;
    use crate::config::{Sentinels, Server};

    /// A handshake with a server that sentinels named, as far as the question for its role.
    fn asked_for_its_role(database: u32) -> (Handshake, Outbox) {
        let sentinels = Sentinels {
            servers: vec![Server { host: "s".into(), port: 1 }],
            primary: "mine".into(),
            username: None,
            password: None,
            tls: false,
        };
        let mut account = target(None, None, database);
        account.address = RedisAddress::Sentinel(Box::new(sentinels));
        let (mut handshake, mut out) = (Handshake::new(&account, database), Outbox::default());
        handshake.begin(&mut out);
        out.take();
        take(&mut handshake, &mut out, b"%1\r\n+proto\r\n:3\r\n").expect("HELLO is answered");
        (handshake, out)
    }

    fn take(handshake: &mut Handshake, out: &mut Outbox, bytes: &[u8]) -> Result<(), SessionError> {
        let frame = Frame::decode(handshake.protocol(), bytes).expect("the tests speak RESP");
        handshake.handle(&frame, out)
    }

    #[test]
    fn who_was_named_by_sentinels_has_to_be_a_primary() {
        let (mut handshake, mut out) = asked_for_its_role(0);
        assert_eq!(commands(&out.take()), ["ROLE"]);
        assert!(!handshake.is_done());
        assert_eq!(take(&mut handshake, &mut out, b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"), Ok(()));
        assert!(handshake.is_done());

        let (mut handshake, mut out) = asked_for_its_role(3);
        assert_eq!(commands(&out.take()), ["SELECT 3"]);
        take(&mut handshake, &mut out, b"+OK\r\n").expect("SELECT is answered");
        assert_eq!(commands(&out.take()), ["ROLE"], "after the database");
        let replica = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$9\r\nconnected\r\n:0\r\n";
        let error = take(&mut handshake, &mut out, replica).expect_err("a replica hears nothing of its own");
        assert!(error.to_string().contains("found a replica where a primary was due"), "{error}");
    }

    #[test]
    fn a_role_that_may_not_be_asked_for_names_the_rule() {
        let (mut handshake, mut out) = asked_for_its_role(0);
        let error = take(&mut handshake, &mut out, b"-NOPERM no\r\n").expect_err("it is refused");
        assert!(error.to_string().contains("+role"), "{error}");
    }
}
