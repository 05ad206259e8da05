//! One knob: what it is called, what it should be, why, and what that may cost.

use std::fmt;

use host::Root;
use serde::{Deserialize, Serialize};

use crate::tune::formula::{Facts, Formula, FormulaError};
use crate::tune::target::{SysFile, Target};

/// See the module.
#[derive(Debug, Clone)]
pub struct Knob {
    /// What it sets.
    pub name: Name,
    /// What that should be.
    pub due: Due,
    /// Whom a change reaches.
    pub scope: Scope,
    /// What it does for corecast.
    pub reason: String,
    /// What it may cost.
    pub risk: String,
    /// A measurement of this repository, the kernel's documentation by its name, or arithmetic.
    pub evidence: String,
}

/// What a knob sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A value of the running kernel.
    Kernel(Target),
    /// Every file of `/sys` that fits, for example one for each core.
    Files(SysFile),
    /// The limit of descriptors, as systemd calls it. Whoever starts corecast sets it.
    LimitNofile,
}

/// Whom a change reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// One network namespace.
    Network,
    /// Everything on the host.
    Host,
    /// The processes of a service; set where it is started, not by `apply`.
    Service,
}

/// What a knob should be.
#[derive(Debug, Clone)]
pub enum Due {
    /// As many numbers as the value has.
    Numbers(Vec<Number>),
    /// A word.
    Word {
        /// The one that is set.
        word: String,
        /// Others that are as good, and stay.
        accepted: Vec<String>,
    },
}

/// One number of a value.
#[derive(Debug, Clone)]
pub struct Number {
    /// What it should be.
    pub formula: Formula,
    /// Which others are as good.
    pub rule: Rule,
}

/// Which values are as good as the one of the formula, and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Higher ones.
    #[default]
    AtLeast,
    /// Lower ones.
    AtMost,
    /// None.
    Exact,
}

/// A knob as it stands in a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnobText {
    /// See [`Knob::name`].
    pub name: String,
    value: Option<OneOrMore<String>>,
    rule: Option<OneOrMore<Rule>>,
    word: Option<String>,
    #[serde(default)]
    accept: Vec<String>,
    scope: Scope,
    reason: String,
    risk: String,
    evidence: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

/// Why a knob of a file is none, or has no value.
#[derive(Debug, thiserror::Error)]
pub enum KnobError {
    /// Its name.
    #[error("found the name {found:?}, due a sysctl, a path below /sys, or LimitNOFILE")]
    Name {
        /// As given.
        found: String,
    },
    /// Whom it reaches contradicts what it is.
    #[error("{name} has the scope {scope}, due {due}")]
    Scope {
        /// Which knob.
        name: String,
        /// As given.
        scope: Scope,
        /// What it could be.
        due: &'static str,
    },
    /// Neither numbers nor a word, or both.
    #[error("{name}: found {found}, due {due}")]
    Value {
        /// Which knob.
        name: String,
        /// What is there.
        found: String,
        /// What could be.
        due: &'static str,
    },
    /// A formula can't be read or has no value.
    #[error("{name}: in the formula {formula:?}: {error}")]
    Formula {
        /// Which knob.
        name: String,
        /// As given.
        formula: String,
        /// What is wrong.
        error: FormulaError,
    },
    /// The kernel's value has another form.
    #[error("{name} is {now:?}, due were as many numbers as the knob has: {count}")]
    Form {
        /// Which knob.
        name: String,
        /// As read.
        now: String,
        /// Those of the knob.
        count: usize,
    },
    /// A text is missing.
    #[error("{name} has no {field}: say it, so that whoever applies it can judge it")]
    Untold {
        /// Which knob.
        name: String,
        /// Which text.
        field: &'static str,
    },
}

impl KnobText {
    /// Understands it.
    ///
    /// # Errors
    /// [`KnobError`].
    pub fn parse(self) -> Result<Knob, KnobError> {
        let name: Name = self.name.parse()?;
        let told = [("reason", &self.reason), ("risk", &self.risk), ("evidence", &self.evidence)];
        if let Some((field, _)) = told.into_iter().find(|(_, text)| text.trim().is_empty()) {
            return Err(KnobError::Untold { name: self.name, field });
        }
        if let Some(due) = name.scope_due(self.scope) {
            return Err(KnobError::Scope { name: self.name, scope: self.scope, due });
        }
        let due = match (self.value, self.word) {
            (Some(value), None) if self.accept.is_empty() => numbers(&self.name, value, self.rule)?,
            (None, Some(word)) if self.rule.is_none() => Due::Word { word, accepted: self.accept },
            (None, None) => return Err(KnobError::value(self.name, "neither value nor word", "one of them")),
            _ => {
                let due = "a value (with rule), or a word (with accept)";
                return Err(KnobError::value(self.name, "fields of both forms", due));
            }
        };
        let Self { scope, reason, risk, evidence, .. } = self;
        Ok(Knob { name, due, scope, reason, risk, evidence })
    }
}

fn numbers(name: &str, value: OneOrMore<String>, rule: Option<OneOrMore<Rule>>) -> Result<Due, KnobError> {
    let formulas = match value {
        OneOrMore::One(formula) => vec![formula],
        OneOrMore::More(formulas) => formulas,
    };
    let rules = match rule {
        None => vec![Rule::default(); formulas.len()],
        Some(OneOrMore::One(rule)) => vec![rule; formulas.len()],
        Some(OneOrMore::More(rules)) => rules,
    };
    if formulas.is_empty() || rules.len() != formulas.len() {
        let found = format!("{} formulas and {} rules", formulas.len(), rules.len());
        return Err(KnobError::value(name.to_owned(), &found, "one of each or more, as many"));
    }
    let parse = |(text, rule): (String, Rule)| match Formula::parse(&text) {
        Ok(formula) => Ok(Number { formula, rule }),
        Err(error) => Err(KnobError::Formula { name: name.to_owned(), formula: text, error }),
    };
    formulas.into_iter().zip(rules).map(parse).collect::<Result<_, _>>().map(Due::Numbers)
}

impl Knob {
    /// The values of the running kernel that it means: none where this machine has none that fit.
    pub fn targets(&self, root: &Root) -> Vec<Target> {
        match &self.name {
            Name::Kernel(target) => vec![target.clone()],
            Name::Files(pattern) => pattern.matching(root).into_iter().map(Target::File).collect(),
            Name::LimitNofile => Vec::new(),
        }
    }

    /// What it should be where it is `now`; the same where that is as good.
    ///
    /// # Errors
    /// [`KnobError::Form`], [`KnobError::Formula`].
    pub fn due(&self, facts: &Facts, now: &str) -> Result<String, KnobError> {
        let numbers = match &self.due {
            Due::Word { word, accepted } => {
                let is_good = accepted.iter().any(|accepted| accepted == now);
                return Ok(if is_good { now.to_owned() } else { word.clone() });
            }
            Due::Numbers(numbers) => numbers,
        };
        let name = || self.name.to_string();
        let form = || KnobError::Form { name: name(), now: now.to_owned(), count: numbers.len() };
        let found: Vec<u64> = now.split(' ').map(str::parse).collect::<Result<_, _>>().map_err(|_| form())?;
        if found.len() != numbers.len() {
            return Err(form());
        }
        let due = numbers.iter().zip(found).map(|(Number { formula, rule }, now)| {
            let due = formula.evaluate(facts, now).map_err(|error| KnobError::Formula {
                name: name(),
                formula: formula.to_string(),
                error,
            })?;
            Ok(rule.better(now, due).to_string())
        });
        Ok(due.collect::<Result<Vec<_>, KnobError>>()?.join(" "))
    }
}

impl KnobError {
    fn value(name: String, found: &str, due: &'static str) -> Self {
        Self::Value { name, found: found.to_owned(), due }
    }
}

impl Rule {
    fn better(self, now: u64, due: u64) -> u64 {
        match self {
            Self::AtLeast => now.max(due),
            Self::AtMost => now.min(due),
            Self::Exact => due,
        }
    }
}

impl Name {
    /// What the scope should be, where `scope` can't be it.
    fn scope_due(&self, scope: Scope) -> Option<&'static str> {
        match self {
            Self::Kernel(Target::Sysctl(name)) if name.is_of_network() => {
                (scope == Scope::Service).then_some("network or host")
            }
            Self::Kernel(_) | Self::Files(_) => (scope != Scope::Host).then_some("host"),
            Self::LimitNofile => (scope != Scope::Service).then_some("service"),
        }
    }
}

impl std::str::FromStr for Name {
    type Err = KnobError;

    fn from_str(text: &str) -> Result<Self, KnobError> {
        let unknown = || KnobError::Name { found: text.to_owned() };
        match text {
            LIMIT_NOFILE => Ok(Self::LimitNofile),
            _ if text.contains('*') => text.parse().map(Self::Files).map_err(|_| unknown()),
            _ => text.parse().map(Self::Kernel).map_err(|_| unknown()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(target) => target.fmt(f),
            Self::Files(pattern) => pattern.fmt(f),
            Self::LimitNofile => f.write_str(LIMIT_NOFILE),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Network => "network",
            Self::Host => "host",
            Self::Service => "service",
        })
    }
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = match self {
            Self::Word { word, accepted } if accepted.is_empty() => return f.write_str(word),
            Self::Word { word, accepted } => return write!(f, "{word} (or {})", accepted.join(", ")),
            Self::Numbers(numbers) => numbers,
        };
        for (index, Number { formula, rule }) in numbers.iter().enumerate() {
            let before = if index == 0 { "" } else { "; " };
            match rule {
                Rule::AtLeast => write!(f, "{before}at least {formula}")?,
                Rule::AtMost => write!(f, "{before}at most {formula}")?,
                Rule::Exact => write!(f, "{before}{formula}")?,
            }
        }
        Ok(())
    }
}

/// As systemd.exec(5) calls it.
const LIMIT_NOFILE: &str = "LimitNOFILE";

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        connections: 100_000,
        memory_bytes: 8 << 30,
        cores: 4,
        page_bytes: 4096,
        listen_backlog: 65_535,
        reserved_descriptors: 104,
    };
    const TEXTS: &str = "reason = 'r'\nrisk = 'k'\nevidence = 'arithmetic'\n";

    fn knob(text: &str) -> Result<Knob, KnobError> {
        toml::from_str::<KnobText>(&format!("{text}\n{TEXTS}")).expect("a table of a knob").parse()
    }

    #[test]
    fn a_value_that_is_more_generous_stays_unless_the_knob_is_exact() {
        let range = knob(
            "name = 'net.ipv4.ip_local_port_range'\nscope = 'network'\nvalue = ['1024', '65535']\nrule = ['at-most', 'at-least']",
        )
        .expect("a knob");
        for (now, due) in
            [("32768 60999", "1024 65535"), ("1000 60999", "1000 65535"), ("1024 65535", "1024 65535")]
        {
            assert_eq!(range.due(&FACTS, now).expect("a value"), due);
        }
        let backlog =
            "name = 'net.core.somaxconn'\nscope = 'network'\nvalue = 'min(listen_backlog, connections)'";
        let at_least = knob(backlog).expect("a knob");
        assert_eq!(at_least.due(&FACTS, "4096").expect("a value"), "65535");
        assert_eq!(at_least.due(&FACTS, "100000").expect("a value"), "100000");
        let exact = knob(&format!("{backlog}\nrule = 'exact'")).expect("a knob");
        assert_eq!(exact.due(&FACTS, "100000").expect("a value"), "65535");
    }

    #[test]
    fn of_words_those_that_are_accepted_stay() {
        let knob = knob(
            "name = '/sys/kernel/mm/transparent_hugepage/enabled'\nscope = 'host'\nword = 'madvise'\naccept = ['never']",
        )
        .expect("a knob");
        for (now, due) in [("always", "madvise"), ("never", "never"), ("madvise", "madvise")] {
            assert_eq!(knob.due(&FACTS, now).expect("a value"), due);
        }
    }

    #[test]
    fn a_value_of_another_form_is_told_and_not_overwritten() {
        let knob = knob("name = 'net.core.somaxconn'\nscope = 'network'\nvalue = '1'").expect("a knob");
        for now in ["1 2", "always", ""] {
            assert!(matches!(knob.due(&FACTS, now), Err(KnobError::Form { count: 1, .. })), "{now:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_no_knob() {
        let refused = |text: &str| knob(text).expect_err(text).to_string();
        for (text, due) in [
            ("name = 'fs.nr_open'\nscope = 'network'\nvalue = '1'", "has the scope network, due host"),
            ("name = 'net.core.somaxconn'\nscope = 'service'\nvalue = '1'", "due network or host"),
            ("name = 'LimitNOFILE'\nscope = 'host'\nvalue = '1'", "due service"),
            ("name = 'LimitNPROC'\nscope = 'service'\nvalue = '1'", "found the name \"LimitNPROC\""),
            ("name = '/etc/passwd'\nscope = 'host'\nword = 'x'", "due a sysctl, a path below /sys"),
            ("name = 'fs.nr_open'\nscope = 'host'", "neither value nor word"),
            ("name = 'fs.nr_open'\nscope = 'host'\nvalue = '1'\nword = 'x'", "fields of both forms"),
            ("name = 'fs.nr_open'\nscope = 'host'\nword = 'x'\nrule = 'exact'", "fields of both forms"),
            ("name = 'fs.nr_open'\nscope = 'host'\nvalue = []", "0 formulas and 0 rules"),
            (
                "name = 'fs.nr_open'\nscope = 'host'\nvalue = ['1', '2']\nrule = ['exact']",
                "2 formulas and 1 rules",
            ),
            (
                "name = 'fs.nr_open'\nscope = 'host'\nvalue = 'conections'",
                "in the formula \"conections\": found",
            ),
        ] {
            assert!(refused(text).contains(due), "{text}: {}", refused(text));
        }
        let silent =
            "name = 'fs.nr_open'\nscope = 'host'\nvalue = '1'\nreason = 'r'\nrisk = ' '\nevidence = 'e'";
        let error =
            toml::from_str::<KnobText>(silent).expect("a table").parse().expect_err("no risk is told");
        assert!(error.to_string().contains("has no risk"), "{error}");
    }
}
