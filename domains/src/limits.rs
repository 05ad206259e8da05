//! Bounds on what a message may make the validators hold or say.

/// Bytes of a room's name, 1 to this: what the routing core takes.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of an event type or of a domain's name.
pub const TYPE_BYTES_MAX: usize = 64;
/// Event types that one registry knows.
pub const TYPES_MAX: usize = 1024;
/// Fields at the top of a message. The search for a repeated one compares each pair once: 128 x 127 / 2 = 8,128 lengths.
pub const FIELDS_MAX: usize = 128;
/// Objects and arrays inside each other: what serde_json reads, so that no receiver's parser sees more.
pub const NESTING_MAX: usize = 127;
/// Bytes of a message that is read into a tree, see [`Message::value`](crate::Message::value). An object of one field
/// takes 7 bytes of text and about 640 of memory, so 64 KiB of text are 6 MiB at worst, for as long as one message is
/// looked at.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a schema's pattern, compiled: room for `^.{0,512}$`. Much larger ones are known to panic inside the engine
/// (rust-lang/regex issue 1344), and a server built with `panic = "abort"` would not outlive that.
pub const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Characters of a refusal's field.
pub const FIELD_CHARS_MAX: usize = 128;
/// Characters of what a refusal expected.
pub const EXPECTED_CHARS_MAX: usize = 512;
/// Characters of what a refusal found.
pub const FOUND_CHARS_MAX: usize = 64;

/// Whether `name` may be a room's name: 1 to [`NAME_BYTES_MAX`] bytes, no control characters.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}
