//! The table `[[redis]]`.

use super::super::input::{Input, Wrong};
use super::super::{RedisServer, RedisTarget, RedisTls};
use super::{Fields, Reader};
use crate::limits::SPACE_BYTES_MAX;

const REDIS_KEYS: &[&str] =
    &["name", "url", "password_variable", "ca_file", "cert_file", "key_file", "server_name"];

impl Reader<'_> {
    pub(super) fn server(&mut self, fields: &mut Fields<'_>) -> Option<RedisServer> {
        self.known(fields, REDIS_KEYS);
        let name = self.required(fields, "name", server_name);
        let target = self.required(fields, "url", |input| {
            let text = input.text("a URL or HOST:PORT, for example \"redis://localhost:6379\"")?;
            text.parse::<RedisTarget>().map_err(|error| Wrong::Sentence(error.to_string()))
        });
        let has_password = target.as_ref().is_some_and(|target| target.password.is_some());
        let password_variable = self.optional(fields, "password_variable", |input| {
            if has_password {
                let sentence = "the url has a password too: leave one out";
                return Err(Wrong::Sentence(sentence.to_owned()));
            }
            let due = "the name of a variable, for example \"ORDERS_PASSWORD\"";
            match input.line(due)? {
                "" => Err(input.wrong(due)),
                name => Ok(name.to_owned()),
            }
        });
        let path = |input: &Input| input.line("a path").map(Into::into);
        let tls = RedisTls {
            ca_file: self.optional(fields, "ca_file", path),
            cert_file: self.optional(fields, "cert_file", path),
            key_file: self.optional(fields, "key_file", path),
            server_name: self.optional(fields, "server_name", RedisTls::read_server_name),
        };
        let mut target = target?;
        if let Err((key, message)) = tls.put_into(&mut target, "") {
            let place = fields.values.get(key).map_or(fields.offset, |(offset, _)| *offset);
            let error = self.place(place).error(key, message);
            self.errors.push(error);
        }
        Some(RedisServer { name: name?, target, password_variable })
    }
}

/// What a Redis is called; a label in metrics.
pub(super) fn server_name(input: &Input) -> Result<String, Wrong> {
    let due = format!("a name of 1 to {SPACE_BYTES_MAX} letters, digits, '-', '_' or '.'");
    let text = input.text(&due)?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=SPACE_BYTES_MAX).contains(&text.len()) && text.bytes().all(known) {
        Ok(text.to_owned())
    } else {
        Err(input.wrong(due))
    }
}
