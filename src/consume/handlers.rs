//! The handlers that the command line names: `TYPE=log`, `TYPE=exec:COMMAND`, `TYPE=webhook:URL`.

use std::time::Duration;

use corecast_consumer::{Event, HandlerError, Registry, TYPE_BYTES_MAX};

use super::exec::Exec;
use super::webhook::Webhook;
use crate::client::Target;

/// What is done with a type's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Log,
    /// For a shell.
    Exec(String),
    /// `http://...`.
    Webhook(String),
}

/// Reads `TYPE=ACTION`.
///
/// # Errors
/// A sentence: found, due.
pub fn parse(text: &str) -> Result<(String, Action), String> {
    let due = "due TYPE=log, TYPE=exec:COMMAND or TYPE=webhook:URL, for example demo.message=log";
    let wrong = || format!("found {text:?}, {due}");
    let (kind, action) = text.split_once('=').ok_or_else(wrong)?;
    if kind.is_empty() || kind.len() > TYPE_BYTES_MAX {
        return Err(wrong());
    }
    let action = match action.split_once(':') {
        None if action == "log" => Action::Log,
        Some(("exec", command)) if !command.trim().is_empty() => Action::Exec(command.to_owned()),
        Some(("webhook", url)) => {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err(format!("found the webhook {url:?}, due http://HOST[:PORT]/PATH"));
            }
            Target::parse(url).map_err(|failure| failure.sentence)?;
            Action::Webhook(url.to_owned())
        }
        _ => return Err(wrong()),
    };
    Ok((kind.to_owned(), action))
}

impl Action {
    /// Has `kind` served by this; a command or webhook may take `timeout`.
    pub fn register(self, kind: &str, timeout: Duration, registry: &mut Registry) {
        match self {
            Self::Log => registry.register(kind, log),
            Self::Exec(command) => registry.register(kind, Exec::new(command, timeout)),
            Self::Webhook(url) => registry.register(kind, Webhook::new(url, timeout)),
        };
    }
}

/// One line at info, with the payload as JSON.
fn log(event: &Event) -> Result<(), HandlerError> {
    let payload = serde_json::to_string(event.payload())?;
    tracing::info!(
        component = "log",
        id = event.id(),
        r#type = event.kind(),
        source = event.source(),
        timestamp = event.timestamp(),
        payload_json = payload,
        "event"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_a_type_and_an_action() {
        let read = |text: &str| parse(text).unwrap();
        assert_eq!(read("demo.message=log"), ("demo.message".to_owned(), Action::Log));
        assert_eq!(read("*=exec:grep a=b"), ("*".to_owned(), Action::Exec("grep a=b".to_owned())));
        let url = "http://[::1]:9000/hook?a=b";
        assert_eq!(read(&format!("a=webhook:{url}")), ("a".to_owned(), Action::Webhook(url.to_owned())));
    }

    #[test]
    fn what_is_no_handler_says_what_is_due() {
        for text in ["", "log", "a=", "=log", "a=exec:", "a=exec: ", "a=logs", "a=log:x", "a=webhook:h:1"] {
            assert!(parse(text).unwrap_err().contains("due "), "{text}");
        }
        assert!(parse("a=webhook:https://h/").unwrap_err().contains("TLS"));
    }
}
