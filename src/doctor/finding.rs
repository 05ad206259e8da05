//! One line of the doctor's: what was found, what was due, what cures it.

use std::fmt;

use serde::Serialize;

/// How a finding is meant; the worst of them decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, nothing to do; or it doesn't apply here.
    Info,
    /// It serves, with less than it could have or than may be needed.
    Warn,
    /// What was asked for will not work.
    Bad,
}

impl Level {
    /// All, as they are counted.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Info, Self::Warn, Self::Bad];

    /// As in text and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable; the table in docs/OPERATIONS.md lists all.
    pub id: &'static str,
    /// See [`Level`].
    pub level: Level,
    /// What there is.
    pub found: String,
    /// What there should be, and why; `None` where nothing is due.
    pub due: Option<String>,
    /// A command of a shell, with what else does it behind a `#`.
    pub cure: Option<String>,
}

impl Finding {
    /// One of `level`, with nothing due.
    pub fn new(id: &'static str, level: Level, found: impl Into<String>) -> Self {
        Self { id, level, found: found.into(), due: None, cure: None }
    }

    /// As it should be.
    pub fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, found)
    }

    /// Worth knowing.
    pub fn info(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Level::Info, found)
    }

    /// Less than it could be.
    pub fn warn(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Level::Warn, found)
    }

    /// It will not work.
    pub fn bad(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Level::Bad, found)
    }

    /// The kernel doesn't tell, so that nothing can be said.
    pub fn untold(id: &'static str, what: &str) -> Self {
        Self::info(id, format!("not judged: {what} can't be read here"))
    }

    /// With what should be.
    pub fn due(mut self, due: impl Into<String>) -> Self {
        self.due = Some(due.into());
        self
    }

    /// With what helps.
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}

/// A number as people read it: `1,048,576`.
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Bytes as people read them: `4.6 GiB`.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(size, _)| self.0 >= *size) {
            Some((size, unit)) if self.0.is_multiple_of(*size) => write!(f, "{} {unit}", self.0 / size),
            Some((size, unit)) => write!(f, "{:.1} {unit}", self.0 as f64 / *size as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Cores as a list that `--cores` takes.
pub fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_048_576, "1,048,576")] {
            assert_eq!(Count(number).to_string(), text);
        }
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (65_536, "64 KiB"), (4_906_000_000, "4.6 GiB")] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn the_worst_level_is_the_highest() {
        assert_eq!(Level::ALL.into_iter().max(), Some(Level::Bad));
        assert!(Level::ALL.is_sorted());
        assert!(Level::ALL.iter().all(|level| serde_json::to_value(level).unwrap() == level.name()));
    }
}
