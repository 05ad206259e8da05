//! A validator's first error as a refusal: which field, what was due there, what was found.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use serde_json::Value;

use crate::Refusal;
use crate::refusal::NOTHING;

/// The refusal that `error` is.
pub(super) fn refusal(error: &ValidationError<'_>) -> Refusal {
    let parent = path(error.instance_path().as_str());
    match error.kind() {
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            Refusal::new(&join(&parent, name), "a value, since the field is required", NOTHING)
        }
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let name = unexpected.first().map_or("", String::as_str);
            let found = error.instance().get(name).map_or_else(|| NOTHING.to_owned(), Value::to_string);
            Refusal::new(&join(&parent, name), "no such field", &found)
        }
        Kind::PropertyNames { error: name } => {
            let expected = format!("names of fields that are each {}", due(name));
            Refusal::new(&parent, &expected, &name.instance().to_string())
        }
        _ => Refusal::new(&parent, &due(error), &error.instance().to_string()),
    }
}

/// A JSON pointer as people write paths: `/payload/values/2` is `payload.values[2]`.
pub(super) fn path(pointer: &str) -> String {
    pointer.split('/').skip(1).fold(String::new(), |path, part| {
        let is_index = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_index && !path.is_empty() {
            return format!("{path}[{part}]");
        }
        join(&path, &part.replace("~1", "/").replace("~0", "~"))
    })
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

fn due(error: &ValidationError<'_>) -> String {
    match error.kind() {
        Kind::Type { kind: TypeKind::Single(name) } => format!("a value of type {name}"),
        Kind::Type { kind: TypeKind::Multiple(names) } => {
            let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
            format!("a value of type {}", names.join(" or "))
        }
        Kind::Constant { expected_value } => expected_value.to_string(),
        Kind::Enum { options } => format!("one of {options}"),
        Kind::Minimum { limit } => format!("at least {limit}"),
        Kind::Maximum { limit } => format!("at most {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("more than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("less than {limit}"),
        Kind::MultipleOf { multiple_of } => format!("a multiple of {multiple_of}"),
        Kind::MinLength { limit } => format!("at least {limit} characters"),
        Kind::MaxLength { limit } => format!("at most {limit} characters"),
        Kind::MinItems { limit } => format!("at least {limit} items"),
        Kind::MaxItems { limit } => format!("at most {limit} items"),
        Kind::AdditionalItems { limit } => format!("at most {limit} items"),
        Kind::MinProperties { limit } => format!("at least {limit} fields"),
        Kind::MaxProperties { limit } => format!("at most {limit} fields"),
        Kind::UniqueItems => "items that are all different".to_owned(),
        Kind::Pattern { pattern } => format!("a text that matches {pattern}"),
        Kind::Format { format } => format!("a text of the format {format}"),
        Kind::FalseSchema => "no value here".to_owned(),
        _ => format!("what the schema says at {}", error.schema_path()),
    }
}
