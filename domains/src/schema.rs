//! Domains that need no code: a JSON Schema in a file.
//!
//! ```json
//! {
//!   "name": "sensors",
//!   "event_types": ["reading"],
//!   "room": "/sensor/site",
//!   "key": "/sensor/id",
//!   "schema": { "type": "object", "required": ["sensor"] }
//! }
//! ```
//!
//! `room` and `key` (which may be left out) are JSON pointers (RFC 6901) to strings of the message. `schema` is of draft
//! 2020-12 and speaks of the whole message, `type` included. `format` is checked, not only noted. Members receive the
//! whole message as it was written.
//!
//! A file stands for itself: a `$ref` leads into the same file or to the draft's own meta-schemas, never elsewhere.
//! A `pattern` is one of the crate `regex`, whose time is linear in the text, so it has neither look-around nor
//! back-references.

use bytes::Bytes;
use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ReferencingError, ValidationError, Validator};
use serde::Deserialize;
use serde_json::Value;

use crate::limits::{PATTERN_BYTES_MAX, is_name};
use crate::message::NAME_EXPECTED;
use crate::refusal::NOTHING;
use crate::tree::Tree;
use crate::{Domain, Event, Message, Refusal};

mod due;
#[cfg(test)]
mod tests;

/// A domain that a file describes, compiled once.
#[derive(Debug)]
pub struct SchemaDomain {
    name: String,
    event_types: Vec<String>,
    room: String,
    key: Option<String>,
    validator: Validator,
}

/// Why a schema file is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// It isn't JSON, repeats a field, lacks one or has one too many.
    #[error(
        "{file}: {error}; due a JSON object with name, event_types, room (a JSON pointer), schema and maybe key"
    )]
    Syntax {
        /// As given.
        file: String,
        /// What and where.
        error: String,
    },
    /// `room` or `key` is no pointer.
    #[error("{file}: found {found:?} as {field}, due a JSON pointer to a field, such as \"/sensor/id\"")]
    Pointer {
        /// As given.
        file: String,
        /// Which of the two.
        field: &'static str,
        /// What is there.
        found: String,
    },
    /// The schema is of another draft.
    #[error("{file}: found $schema {found}, due {DRAFT:?} or none")]
    Draft {
        /// As given.
        file: String,
        /// What is there.
        found: String,
    },
    /// A `$ref` leads out of the file.
    #[error(
        "{file}: found a $ref to {uri}, due one within the file: nothing is fetched, copy that schema into $defs"
    )]
    Reference {
        /// As given.
        file: String,
        /// Where it leads.
        uri: String,
    },
    /// The schema breaks the draft's rules, or ours for patterns and formats.
    #[error("{file}: schema{path}: {error}")]
    Schema {
        /// As given.
        file: String,
        /// JSON pointer into the schema.
        path: String,
        /// What is wrong there.
        error: String,
    },
}

/// Identifier of draft 2020-12.
pub const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    event_types: Vec<String>,
    room: String,
    key: Option<String>,
    schema: Tree,
}

impl SchemaDomain {
    /// Compiles the text of a file; `file` is its name, for errors.
    ///
    /// # Errors
    /// See [`SchemaError`]. Names and types are the registry's to check.
    pub fn parse(text: &str, file: &str) -> Result<Self, SchemaError> {
        let parsed: File = serde_json::from_str(text)
            .map_err(|error| SchemaError::Syntax { file: file.to_owned(), error: error.to_string() })?;
        check_pointer(&parsed.room, "room", file)?;
        if let Some(key) = &parsed.key {
            check_pointer(key, "key", file)?;
        }
        let validator = compile(&parsed.schema.0, file)?;
        let File { name, event_types, room, key, .. } = parsed;
        Ok(Self { name, event_types, room, key, validator })
    }
}

impl Domain for SchemaDomain {
    fn name(&self) -> &str {
        &self.name
    }

    fn event_types(&self) -> Vec<String> {
        self.event_types.clone()
    }

    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let value = message.value()?;
        self.validator.validate(&value).map_err(|error| due::refusal(&error))?;
        Ok(Event {
            room: name_at(&value, &self.room)?,
            event_type: message.event_type().to_owned(),
            data: Bytes::copy_from_slice(message.text().as_bytes()),
            key: self.key.as_deref().map(|key| name_at(&value, key)).transpose()?,
        })
    }
}

/// RFC 6901: every `~` is followed by 0 or 1. The empty pointer is the whole message, which is no string.
fn check_pointer(pointer: &str, field: &'static str, file: &str) -> Result<(), SchemaError> {
    let escaped = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if pointer.starts_with('/') && escaped {
        return Ok(());
    }
    Err(SchemaError::Pointer { file: file.to_owned(), field, found: pointer.to_owned() })
}

fn compile(schema: &Value, file: &str) -> Result<Validator, SchemaError> {
    match schema.get("$schema") {
        Some(found) if found.as_str().map(|id| id.trim_end_matches('#')) != Some(DRAFT) => {
            return Err(SchemaError::Draft { file: file.to_owned(), found: found.to_string() });
        }
        _ => {}
    }
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
        .build(schema)
        .map_err(|error| schema_error(&error, file))
}

fn schema_error(error: &ValidationError<'_>, file: &str) -> SchemaError {
    let file = file.to_owned();
    if let ValidationErrorKind::Referencing(ReferencingError::Unretrievable { uri, .. }) = error.kind() {
        return SchemaError::Reference { file, uri: uri.clone() };
    }
    SchemaError::Schema { file, path: error.instance_path().to_string(), error: error.to_string() }
}

fn name_at(value: &Value, pointer: &str) -> Result<String, Refusal> {
    let found = value.pointer(pointer);
    found.and_then(Value::as_str).filter(|text| is_name(text)).map(str::to_owned).ok_or_else(|| {
        let found = found.map_or_else(|| NOTHING.to_owned(), Value::to_string);
        Refusal::new(&due::path(pointer), NAME_EXPECTED, &found)
    })
}
