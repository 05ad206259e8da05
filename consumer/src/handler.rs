//! What a user of this library writes: a [`Handler`], and its line in the [`Registry`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::event::Event;

/// The type that stands for every type without a handler of its own.
pub const ANY_TYPE: &str = "*";

/// What is done with the events of a type.
///
/// Called on a worker's thread, by several workers at once. It may block; a worker serves one event at a time. An event
/// that failed comes again, so doing the same twice should do no harm (`event.id()` tells).
///
/// A panic counts as a failure where panics unwind; in a program built with `panic = "abort"` it ends the process.
pub trait Handler: Send + Sync {
    /// Handles one event.
    ///
    /// # Errors
    /// [`HandlerError::Retry`] to be called again later, [`HandlerError::Permanent`] where that can't help.
    fn handle(&self, event: &Event) -> Result<(), HandlerError>;
}

impl<F> Handler for F
where
    F: Fn(&Event) -> Result<(), HandlerError> + Send + Sync,
{
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        self(event)
    }
}

/// Why an event was not handled. Any error, by `?`, is one to be retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerError {
    /// It may work later.
    Retry(String),
    /// It will never work: the event becomes a dead letter at once.
    Permanent(String),
}

// No `std::error::Error` itself: it could not be made from every one of those then.
impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::Retry(error.to_string())
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Retry(reason) | Self::Permanent(reason)) = self;
        f.write_str(reason)
    }
}

/// Which handler serves which type. Complete before the workers start, so that looking one up locks nothing.
#[derive(Default, Clone)]
pub struct Registry {
    handlers: HashMap<String, Arc<dyn Handler>>,
}

impl Registry {
    /// Knows no type yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `kind` with `handler`; [`ANY_TYPE`] serves all types that have none.
    ///
    /// # Panics
    /// When `kind` has a handler already: only one of the two would ever be called.
    pub fn register(&mut self, kind: &str, handler: impl Handler + 'static) -> &mut Self {
        let before = self.handlers.insert(kind.to_owned(), Arc::new(handler));
        assert!(before.is_none(), "type {kind:?} was registered twice; one handler serves a type");
        self
    }

    /// Types with a handler, in order.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = self.handlers.keys().map(String::as_str).collect();
        kinds.sort_unstable();
        kinds
    }

    pub(crate) fn handler(&self, kind: &str) -> Option<Arc<dyn Handler>> {
        self.handlers.get(kind).or_else(|| self.handlers.get(ANY_TYPE)).cloned()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.kinds()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(_: &Event) -> Result<(), HandlerError> {
        "x".parse::<u8>()?;
        Ok(())
    }

    #[test]
    fn a_type_without_a_handler_goes_to_the_one_for_any_type() {
        let mut registry = Registry::new();
        registry.register("a", refuse);
        assert!(registry.handler("a").is_some() && registry.handler("b").is_none());
        registry.register(ANY_TYPE, refuse);
        assert!(registry.handler("b").is_some());
        assert_eq!(registry.kinds(), ["*", "a"]);
    }

    #[test]
    #[should_panic(expected = "type \"a\" was registered twice")]
    fn a_type_has_one_handler() {
        Registry::new().register("a", refuse).register("a", refuse);
    }

    #[test]
    fn an_error_by_question_mark_is_retried() {
        let event = r#"{"id":"550e8400-e29b-41d4-a716-446655440000","type":"a","source":"s",
            "timestamp":"2026-02-22T10:00:00Z","payload":{}}"#;
        let error = refuse.handle(&event.parse().unwrap()).unwrap_err();
        assert_eq!(error, HandlerError::Retry("invalid digit found in string".to_owned()));
    }
}
