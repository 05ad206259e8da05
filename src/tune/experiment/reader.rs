//! A TOML text as fields with their places; all faults are collected.

use std::fmt;
use std::path::Path;

use shards::config::{Input, Wrong, hint};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Everything that is wrong with a file, one fault a line, in the order of the file.
#[derive(Debug)]
pub struct Faults(Vec<Fault>);

#[derive(Debug)]
struct Fault {
    line: usize,
    column: usize,
    file: String,
    message: String,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Fault { file, line, column, message }) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{file}:{line}:{column}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Reads one file.
pub struct Reader<'t> {
    file: &'t Path,
    text: &'t str,
    faults: Vec<Fault>,
}

/// The keys of one table.
pub struct Fields<'t> {
    /// `arm.b`; empty for the document.
    path: String,
    offset: usize,
    table: DeTable<'t>,
}

impl<'t> Reader<'t> {
    /// `file` is for messages.
    pub fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, faults: Vec::new() }
    }

    /// The top of the file, unless it is no TOML.
    pub fn document(&mut self) -> Option<Fields<'t>> {
        match DeTable::parse(self.text) {
            Ok(document) => Some(Fields { path: String::new(), offset: 0, table: document.into_inner() }),
            Err(error) => {
                self.fail(error.span().map_or(0, |span| span.start), "not TOML", error.message());
                None
            }
        }
    }

    /// What was read, or all faults.
    pub fn finish<T>(mut self, read: Option<T>) -> Result<T, Faults> {
        self.faults.sort_by_key(|fault| (fault.line, fault.column));
        match read {
            Some(read) if self.faults.is_empty() => Ok(read),
            _ => Err(Faults(self.faults)),
        }
    }

    /// Complains about keys that `fields` should not have.
    pub fn known(&mut self, fields: &Fields<'_>, known: &[&str]) {
        for key in fields.table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let message = format!("unknown key{}; {}", fields.place(), hint(name, known.iter().copied()));
                self.fail(key.span().start, name, &message);
            }
        }
    }

    /// The value of `key`, `None` where it isn't there or is wrong.
    pub fn optional<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        read: impl FnOnce(&Input) -> Result<T, Wrong>,
    ) -> Option<T> {
        let value = fields.table.get(key)?;
        match read(&input(value.get_ref())) {
            Ok(read) => Some(read),
            Err(wrong) => {
                self.fail(value.span().start, key, &wrong.to_string());
                None
            }
        }
    }

    /// The same for a key that must be there.
    pub fn required<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        read: impl FnOnce(&Input) -> Result<T, Wrong>,
    ) -> Option<T> {
        if !fields.table.contains_key(key) {
            self.missing(fields, key);
        }
        self.optional(fields, key, read)
    }

    /// The table under `key`.
    pub fn table<'f>(&mut self, fields: &Fields<'f>, key: &str, is_required: bool) -> Option<Fields<'f>> {
        let Some(value) = fields.table.get(key) else {
            if is_required {
                self.missing(fields, key);
            }
            return None;
        };
        let DeValue::Table(table) = value.get_ref() else {
            let wrong = input(value.get_ref()).wrong("a table");
            self.fail(value.span().start, key, &wrong.to_string());
            return None;
        };
        let path = if fields.path.is_empty() { key.to_owned() } else { format!("{}.{key}", fields.path) };
        Some(Fields { path, offset: value.span().start, table: table.clone() })
    }

    /// Every key of the table under `key`, with what `read` makes of it and its value.
    pub fn entries<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        mut read: impl FnMut(&str, &Input) -> Result<T, Wrong>,
    ) -> Vec<T> {
        let Some(inner) = self.table(fields, key, false) else { return Vec::new() };
        let mut entries: Vec<(&Spanned<_>, &Spanned<_>)> = inner.table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut found = Vec::new();
        for (key, value) in entries {
            let name: &str = key.get_ref();
            match read(name, &input(value.get_ref())) {
                Ok(read) => found.push(read),
                Err(wrong) => self.fail(key.span().start, name, &wrong.to_string()),
            }
        }
        found
    }

    fn missing(&mut self, fields: &Fields<'_>, key: &str) {
        self.fail(fields.offset, key, &format!("missing{}, and needed", fields.place()));
    }

    fn fail(&mut self, offset: usize, key: &str, message: &str) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.faults.push(Fault {
            line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            file: self.file.display().to_string(),
            message: format!("{key}: {message}"),
        });
    }
}

impl Fields<'_> {
    fn place(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!(" in {}", self.path) }
    }
}

fn input(value: &DeValue<'_>) -> Input {
    match value {
        DeValue::String(text) => Input::Text(text.as_ref().to_owned()),
        DeValue::Boolean(value) => Input::Boolean(*value),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => Input::Integer(value),
            Err(_) => Input::Other(format!("the integer {digits}")),
        },
        DeValue::Array(values) => Input::List(values.iter().map(|value| input(value.get_ref())).collect()),
        DeValue::Float(digits) => Input::Other(format!("the number {digits}")),
        DeValue::Datetime(time) => Input::Other(format!("the time {time}")),
        DeValue::Table(_) => Input::Other("a table".to_owned()),
    }
}
