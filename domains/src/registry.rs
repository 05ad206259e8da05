//! The domains of one server, found by an event's type.

use crate::limits::{EXPECTED_CHARS_MAX, TYPE_BYTES_MAX, TYPES_MAX, is_name};
use crate::{Chat, Common, Domain, Event, Message, Refusal, Trading};

#[cfg(test)]
mod tests;

/// Names that [`Registry::built_in`] knows.
pub const BUILT_IN: [&str; 3] = ["trading", "chat", "common"];
/// Types that the protocol keeps for itself: what clients ask for, which never reaches a domain, and what the server
/// answers, which clients must be able to tell from events.
pub const RESERVED_TYPES: [&str; 8] = ["join", "leave", "joined", "left", "error", "gap", "ping", "pong"];

/// Domains, each event type belonging to one. Built once, then shared.
#[derive(Default)]
pub struct Registry {
    domains: Vec<Box<dyn Domain>>,
    /// Type and index into `domains`, sorted by type.
    types: Vec<(String, usize)>,
}

/// Why a domain can't be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// No such domain is built in.
    #[error("found the domain {name:?}, due one of {}", BUILT_IN.join(", "))]
    Unknown {
        /// As given.
        name: String,
    },
    /// The name, or that of a type, is empty, too long or holds control characters.
    #[error(
        "found the name {name:?} in domain {domain:?}, due 1 to {TYPE_BYTES_MAX} bytes without control characters"
    )]
    Name {
        /// Whose.
        domain: String,
        /// As given.
        name: String,
    },
    /// Another domain has the name.
    #[error("found two domains named {name:?}, due one: rename one of them")]
    Twice {
        /// The name.
        name: String,
    },
    /// It speaks for no type, or for too many.
    #[error(
        "found {found} event types with those of domain {domain:?}, due at least one of its own and at most {TYPES_MAX} in all"
    )]
    Types {
        /// Whose.
        domain: String,
        /// With the types of all domains before.
        found: usize,
    },
    /// Another domain, or this one, speaks for the type already.
    #[error("found the event type {event_type:?} in domains {first:?} and {second:?}, due in one")]
    Type {
        /// The type.
        event_type: String,
        /// Who has it.
        first: String,
        /// Who wants it.
        second: String,
    },
    /// The protocol needs the type itself.
    #[error(
        "found the event type {event_type:?} in domain {domain:?}, which the protocol keeps for itself: choose another"
    )]
    Reserved {
        /// Whose.
        domain: String,
        /// The type.
        event_type: String,
    },
}

impl Registry {
    /// The domains of these names, out of [`BUILT_IN`].
    ///
    /// # Errors
    /// A name that isn't built in, or the same one twice.
    pub fn built_in<N: AsRef<str>>(names: &[N]) -> Result<Self, Conflict> {
        let mut registry = Self::default();
        for name in names {
            registry.register(built_in(name.as_ref())?)?;
        }
        Ok(registry)
    }

    /// Adds a domain. On an error nothing is added.
    ///
    /// # Errors
    /// See [`Conflict`].
    pub fn register(&mut self, domain: Box<dyn Domain>) -> Result<(), Conflict> {
        let types = domain.event_types();
        self.check(domain.as_ref(), &types)?;
        let index = self.domains.len();
        self.types.extend(types.into_iter().map(|event_type| (event_type, index)));
        self.types.sort_unstable();
        self.domains.push(domain);
        Ok(())
    }

    /// The event in one client's message, which may be any bytes.
    ///
    /// Costs two passes over the text and a copy of the event's data. Takes as long as the message is, and memory as its
    /// data, whatever it nests; a domain that reads a tree has a bound of its own, see [`Message::value`].
    ///
    /// # Errors
    /// What [`Message::parse`] or the domain of its type refuses, and a type of no domain.
    pub fn admit(&self, text: &[u8]) -> Result<Event, Refusal> {
        self.admit_message(&Message::parse(text)?)
    }

    /// The event in a message that has been split already.
    ///
    /// # Errors
    /// What the domain of its type refuses, and a type of no domain.
    pub fn admit_message(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let domain = self.domain_of(message.event_type()).ok_or_else(|| self.refuse_type(message, ""))?;
        let event = domain.admit(message).map_err(Refusal::bounded)?;
        debug_assert!(is_name(&event.room), "domain {} admits to a room without a name", domain.name());
        Ok(event)
    }

    /// A refusal of the type of `message` that names those of all domains, but for `left_out`.
    pub fn refuse_type(&self, message: &Message<'_>, left_out: &str) -> Refusal {
        let known = self.types.iter().map(|(event_type, _)| event_type.as_str());
        let known: Vec<&str> = known.filter(|event_type| *event_type != left_out).collect();
        let mut expected = String::from("one of");
        let mut left = known.len();
        for event_type in &known {
            let next = format!(" {event_type:?}");
            // What stands behind the last name, " and 1024 more", has to fit too.
            if expected.len() + next.len() + " and 1024 more".len() > EXPECTED_CHARS_MAX {
                break;
            }
            expected += &next;
            left -= 1;
        }
        match left {
            0 if known.is_empty() => message.refuse("type", "no event: no domain is configured"),
            0 => message.refuse("type", &expected),
            _ => message.refuse("type", &format!("{expected} and {left} more")),
        }
    }

    /// Whether some domain speaks for this type.
    pub fn knows(&self, event_type: &str) -> bool {
        self.domain_of(event_type).is_some()
    }

    /// Whether there is no domain at all.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// Domain and event type of all it knows, sorted by type.
    pub fn event_types(&self) -> impl Iterator<Item = (&str, &str)> {
        self.types.iter().map(|(event_type, index)| (self.domains[*index].name(), event_type.as_str()))
    }

    fn domain_of(&self, event_type: &str) -> Option<&dyn Domain> {
        let at = self.types.binary_search_by(|(found, _)| found.as_str().cmp(event_type)).ok()?;
        Some(self.domains[self.types[at].1].as_ref())
    }

    fn check(&self, domain: &dyn Domain, types: &[String]) -> Result<(), Conflict> {
        let name = domain.name();
        for found in std::iter::once(name).chain(types.iter().map(String::as_str)) {
            if !is_name(found) || found.len() > TYPE_BYTES_MAX {
                return Err(Conflict::Name { domain: name.to_owned(), name: found.to_owned() });
            }
        }
        if self.domains.iter().any(|other| other.name() == name) {
            return Err(Conflict::Twice { name: name.to_owned() });
        }
        let found = self.types.len() + types.len();
        if types.is_empty() || found > TYPES_MAX {
            return Err(Conflict::Types { domain: name.to_owned(), found });
        }
        types
            .iter()
            .enumerate()
            .try_for_each(|(at, event_type)| self.check_type(name, &types[..at], event_type))
    }

    /// `before`: the types that the same domain has named.
    fn check_type(&self, name: &str, before: &[String], event_type: &String) -> Result<(), Conflict> {
        if RESERVED_TYPES.contains(&event_type.as_str()) {
            return Err(Conflict::Reserved { domain: name.to_owned(), event_type: event_type.clone() });
        }
        let other = self.domain_of(event_type).map(Domain::name);
        match other.or(before.contains(event_type).then_some(name)) {
            None => Ok(()),
            Some(first) => Err(Conflict::Type {
                event_type: event_type.clone(),
                first: first.to_owned(),
                second: name.to_owned(),
            }),
        }
    }
}

fn built_in(name: &str) -> Result<Box<dyn Domain>, Conflict> {
    match name {
        "trading" => Ok(Box::new(Trading)),
        "chat" => Ok(Box::new(Chat)),
        "common" => Ok(Box::new(Common::default())),
        _ => Err(Conflict::Unknown { name: name.to_owned() }),
    }
}
