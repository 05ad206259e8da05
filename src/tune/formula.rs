//! Arithmetic over named facts: what a knob should be on this machine for so many connections.
//!
//! `max(current, connections * 1.2 + 65536)`: numbers, facts, `+ - * /`, parentheses, `min` and `max`. Computed in whole
//! fractions, so nothing is rounded before the end, and whatever doesn't fit is an error.

use std::fmt;

/// A formula that was read.
#[derive(Debug, Clone)]
pub struct Formula {
    text: String,
    expression: Expression,
}

/// What a formula may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// What the knob (or this number of its list) is now.
    Current,
    /// Connections that are wanted.
    Connections,
    /// The machine's memory.
    MemoryBytes,
    /// Cores that are online.
    Cores,
    /// A page of memory, in which `tcp_mem` counts.
    PageBytes,
    /// What corecast asks `listen()` for.
    ListenBacklog,
    /// Descriptors that corecast keeps beside its connections' on so many cores.
    ReservedDescriptors,
}

/// What the facts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// See [`Fact::Connections`].
    pub connections: u64,
    /// See [`Fact::MemoryBytes`].
    pub memory_bytes: u64,
    /// See [`Fact::Cores`].
    pub cores: u64,
    /// See [`Fact::PageBytes`].
    pub page_bytes: u64,
    /// See [`Fact::ListenBacklog`].
    pub listen_backlog: u64,
    /// See [`Fact::ReservedDescriptors`].
    pub reserved_descriptors: u64,
}

/// Why a formula is none, or has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormulaError {
    /// It can't be read on.
    #[error("found {found} at character {at}, due {due}")]
    Syntax {
        /// What is there.
        found: String,
        /// Characters before it, plus one.
        at: usize,
        /// What could be there.
        due: &'static str,
    },
    /// Longer than [`FORMULA_BYTES_MAX`].
    #[error("found {bytes} bytes, due at most {FORMULA_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The divisor is zero.
    #[error("it divides by zero")]
    DividedByZero,
    /// Below zero, or above what the kernel's numbers hold.
    #[error("its value is below 0 or above {VALUE_MAX}")]
    OutOfRange,
}

impl Formula {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`FormulaError::Syntax`] with the place, [`FormulaError::TooLong`].
    pub fn parse(text: &str) -> Result<Self, FormulaError> {
        if text.len() > FORMULA_BYTES_MAX {
            return Err(FormulaError::TooLong { bytes: text.len() });
        }
        let mut parser = Parser { text, at: 0 };
        let expression = parser.sum()?;
        match parser.peek() {
            None => Ok(Self { text: text.to_owned(), expression }),
            Some(_) => Err(parser.unexpected("an operator or the end")),
        }
    }

    /// Its value, rounded up to a whole number.
    ///
    /// # Errors
    /// [`FormulaError::DividedByZero`], [`FormulaError::OutOfRange`].
    pub fn evaluate(&self, facts: &Facts, current: u64) -> Result<u64, FormulaError> {
        let value = self.expression.evaluate(facts, current)?;
        let whole = value.ceiling().ok_or(FormulaError::OutOfRange)?;
        u64::try_from(whole).ok().filter(|whole| *whole <= VALUE_MAX).ok_or(FormulaError::OutOfRange)
    }
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Bytes of a formula, which bounds how deep its parentheses nest.
const FORMULA_BYTES_MAX: usize = 256;
/// The kernel's widest parameters are signed 64-bit numbers.
const VALUE_MAX: u64 = i64::MAX as u64;

#[derive(Debug, Clone)]
enum Expression {
    Number(Ratio),
    Fact(Fact),
    Binary(Operator, Box<(Self, Self)>),
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Min,
    Max,
}

impl Expression {
    fn evaluate(&self, facts: &Facts, current: u64) -> Result<Ratio, FormulaError> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Fact(fact) => Ok(Ratio::whole(fact.value(facts, current))),
            Self::Binary(operator, operands) => {
                let left = operands.0.evaluate(facts, current)?;
                let right = operands.1.evaluate(facts, current)?;
                operator.apply(left, right)
            }
        }
    }
}

impl Operator {
    fn apply(self, left: Ratio, right: Ratio) -> Result<Ratio, FormulaError> {
        let negative = |ratio: Ratio| ratio.above.checked_neg().map(|above| Ratio { above, ..ratio });
        let result = match self {
            Self::Add => left.plus(right),
            Self::Subtract => negative(right).and_then(|right| left.plus(right)),
            Self::Multiply => left.times(right),
            Self::Divide if right.above == 0 => return Err(FormulaError::DividedByZero),
            Self::Divide => right.inverse().and_then(|right| left.times(right)),
            Self::Min => left.is_below(right).map(|is_below| if is_below { left } else { right }),
            Self::Max => left.is_below(right).map(|is_below| if is_below { right } else { left }),
        };
        result.ok_or(FormulaError::OutOfRange)
    }
}

impl Fact {
    /// Every fact and how a formula names it.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Current, "current"),
        (Self::Connections, "connections"),
        (Self::MemoryBytes, "memory_bytes"),
        (Self::Cores, "cores"),
        (Self::PageBytes, "page_bytes"),
        (Self::ListenBacklog, "listen_backlog"),
        (Self::ReservedDescriptors, "reserved_descriptors"),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(fact, _)| *fact)
    }

    fn value(self, facts: &Facts, current: u64) -> u64 {
        match self {
            Self::Current => current,
            Self::Connections => facts.connections,
            Self::MemoryBytes => facts.memory_bytes,
            Self::Cores => facts.cores,
            Self::PageBytes => facts.page_bytes,
            Self::ListenBacklog => facts.listen_backlog,
            Self::ReservedDescriptors => facts.reserved_descriptors,
        }
    }
}

/// A fraction in lowest terms; `below` is positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ratio {
    above: i128,
    below: i128,
}

impl Ratio {
    fn whole(number: u64) -> Self {
        Self { above: i128::from(number), below: 1 }
    }

    fn reduced(above: i128, below: i128) -> Option<Self> {
        let common = common_divisor(above.checked_abs()?, below);
        Some(Self { above: above / common, below: below / common })
    }

    fn plus(self, other: Self) -> Option<Self> {
        let left = self.above.checked_mul(other.below)?;
        let right = other.above.checked_mul(self.below)?;
        Self::reduced(left.checked_add(right)?, self.below.checked_mul(other.below)?)
    }

    fn times(self, other: Self) -> Option<Self> {
        Self::reduced(self.above.checked_mul(other.above)?, self.below.checked_mul(other.below)?)
    }

    /// `None` for zero.
    fn inverse(self) -> Option<Self> {
        let sign = self.above.signum();
        (sign != 0).then_some(())?;
        Some(Self { above: self.below.checked_mul(sign)?, below: self.above.checked_mul(sign)? })
    }

    fn is_below(self, other: Self) -> Option<bool> {
        Some(self.above.checked_mul(other.below)? < other.above.checked_mul(self.below)?)
    }

    fn ceiling(self) -> Option<i128> {
        let rest = i128::from(self.above.rem_euclid(self.below) > 0);
        self.above.div_euclid(self.below).checked_add(rest)
    }
}

/// Euclid's; `right` is positive.
fn common_divisor(mut left: i128, mut right: i128) -> i128 {
    while left != 0 {
        (left, right) = (right % left, left);
    }
    right
}

struct Parser<'t> {
    text: &'t str,
    /// In bytes.
    at: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<Expression, FormulaError> {
        self.chain(&[('+', Operator::Add), ('-', Operator::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Expression, FormulaError> {
        self.chain(&[('*', Operator::Multiply), ('/', Operator::Divide)], Self::operand)
    }

    /// Operands between any of `operators`, from left to right.
    fn chain(
        &mut self,
        operators: &[(char, Operator)],
        operand: fn(&mut Self) -> Result<Expression, FormulaError>,
    ) -> Result<Expression, FormulaError> {
        let mut left = operand(self)?;
        while let Some((sign, operator)) = operators.iter().find(|(sign, _)| self.peek() == Some(*sign)) {
            self.take(*sign, "an operator")?;
            left = Expression::Binary(*operator, Box::new((left, operand(self)?)));
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<Expression, FormulaError> {
        match self.peek() {
            Some('(') => {
                self.take('(', "(")?;
                let inside = self.sum()?;
                self.take(')', "an operator or )")?;
                Ok(inside)
            }
            Some(first) if first.is_ascii_digit() => self.number(),
            Some(first) if first.is_ascii_lowercase() => self.name(),
            _ => Err(self.unexpected(OPERAND)),
        }
    }

    fn number(&mut self) -> Result<Expression, FormulaError> {
        let digits = self.while_is(|c| c.is_ascii_digit() || c == '.');
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = !digits.ends_with('.') && digits.len() <= DIGITS_MAX;
        let above = format!("{whole}{fraction}").parse().ok().filter(|_| is_number);
        let below = u32::try_from(fraction.len()).ok().and_then(|digits| 10_i128.checked_pow(digits));
        let ratio = above.zip(below).and_then(|(above, below)| Ratio::reduced(above, below));
        let digits_count = digits.len();
        ratio.map(Expression::Number).ok_or_else(|| {
            self.at -= digits_count;
            self.unexpected("a number of at most 19 digits")
        })
    }

    fn name(&mut self) -> Result<Expression, FormulaError> {
        let name = self.while_is(|c| c.is_ascii_lowercase() || c == '_');
        let operator = match name {
            "min" => Operator::Min,
            "max" => Operator::Max,
            _ => {
                let (fact, length) = (Fact::named(name), name.len());
                return fact.map(Expression::Fact).ok_or_else(|| {
                    self.at -= length;
                    self.unexpected(OPERAND)
                });
            }
        };
        self.take('(', "(")?;
        let mut least = self.sum()?;
        self.take(',', "an operator or a comma")?;
        loop {
            least = Expression::Binary(operator, Box::new((least, self.sum()?)));
            if self.peek() != Some(',') {
                break;
            }
            self.take(',', "a comma")?;
        }
        self.take(')', "an operator, a comma or )")?;
        Ok(least)
    }

    fn while_is(&mut self, is_part: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn take(&mut self, due: char, words: &'static str) -> Result<(), FormulaError> {
        match self.peek() {
            Some(found) if found == due => {
                self.at += due.len_utf8();
                Ok(())
            }
            _ => Err(self.unexpected(words)),
        }
    }

    /// The next character that is no blank.
    fn peek(&mut self) -> Option<char> {
        self.while_is(|c| c == ' ');
        self.text[self.at..].chars().next()
    }

    fn unexpected(&self, due: &'static str) -> FormulaError {
        let rest = &self.text[self.at..];
        let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
        let found = match (rest.chars().next(), word) {
            (None, _) => "the end".to_owned(),
            (Some(first), Some(0)) => format!("{first:?}"),
            (_, end) => format!("{:?}", &rest[..end.unwrap_or(rest.len())]),
        };
        FormulaError::Syntax { found, at: self.text[..self.at].chars().count() + 1, due }
    }
}

/// Those of 2^63, and a point.
const DIGITS_MAX: usize = 20;
const OPERAND: &str = "a number, a parenthesis, min, max, or one of current, connections, memory_bytes, cores, \
                       page_bytes, listen_backlog, reserved_descriptors";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FACTS: Facts = Facts {
        connections: 100_000,
        memory_bytes: 16 << 30,
        cores: 8,
        page_bytes: 4096,
        listen_backlog: 65_535,
        reserved_descriptors: 168,
    };

    fn value(text: &str) -> Result<u64, FormulaError> {
        Formula::parse(text)?.evaluate(&FACTS, 4096)
    }

    #[test]
    fn arithmetic_has_its_usual_order_and_rounds_up_once() {
        for (text, due) in [
            ("42", 42),
            ("1 + 2 * 3", 7),
            ("(1 + 2) * 3", 9),
            ("10 - 4 - 3", 3),
            ("100 / 10 / 5", 2),
            ("max(current, connections * 1.2)", 120_000),
            ("min(listen_backlog, connections)", 65_535),
            ("max(1, 2, min(9, 7), 3)", 7),
            ("connections * 1.5 * page_bytes / memory_bytes", 1),
            ("1 / 3 * 3", 1),
            ("0.1 * 3 * 10", 3),
            ("10.5", 11),
            ("connections + reserved_descriptors + cores", 100_176),
            ("9223372036854775807", VALUE_MAX),
        ] {
            assert_eq!(value(text), Ok(due), "{text}");
        }
    }

    #[test]
    fn every_fact_is_named_in_the_error_for_an_unknown_one() {
        for (_, name) in Fact::ALL {
            assert!(value(name).is_ok() && OPERAND.contains(name), "{name}");
        }
        let error = value("max(current, conections)").expect_err("there is no such fact").to_string();
        assert!(error.starts_with("found \"conections\" at character 14, due a number"), "{error}");
    }

    #[test]
    fn what_is_no_formula_is_refused_with_its_place() {
        for (text, at) in [
            ("", 1),
            ("1 +", 4),
            ("(1", 3),
            ("1)", 2),
            ("max(1)", 6),
            ("max 1", 5),
            ("1..2", 1),
            ("2 x", 3),
            ("-1", 1),
            ("1.", 1),
            ("\u{e9}", 1),
            ("1 + 99999999999999999999999", 5),
        ] {
            match value(text) {
                Err(FormulaError::Syntax { at: found, .. }) => assert_eq!(found, at, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
        let long = "(".repeat(FORMULA_BYTES_MAX + 1);
        assert_eq!(value(&long), Err(FormulaError::TooLong { bytes: FORMULA_BYTES_MAX + 1 }));
    }

    #[test]
    fn what_has_no_value_says_why() {
        assert_eq!(value("1 / (cores - 8)"), Err(FormulaError::DividedByZero));
        assert_eq!(value("cores - 9"), Err(FormulaError::OutOfRange));
        assert_eq!(value("9223372036854775807 + 1"), Err(FormulaError::OutOfRange));
        let product = ["9223372036854775807"; 9].join(" * ");
        assert_eq!(value(&product), Err(FormulaError::OutOfRange));
    }

    /// A formula, and its value by floating point.
    fn formulas() -> impl Strategy<Value = (String, f64)> {
        let leaf = prop_oneof![
            (0_u64..1_000_000).prop_map(|number| (number.to_string(), number as f64)),
            (0_u32..1000, 1_u32..100).prop_map(|(whole, cents)| {
                (format!("{whole}.{cents:02}"), f64::from(whole) + f64::from(cents) / 100.0)
            }),
            Just(("connections".to_owned(), FACTS.connections as f64)),
        ];
        leaf.prop_recursive(4, 16, 2, |inner| {
            (inner.clone(), inner, 0_usize..5).prop_map(|((left, a), (right, b), operator)| match operator {
                0 => (format!("({left} + {right})"), a + b),
                1 => (format!("({left} - {right})"), a - b),
                2 => (format!("{left} * {right}"), a * b),
                3 => (format!("min({left}, {right})"), a.min(b)),
                _ => (format!("max({left},{right})"), a.max(b)),
            })
        })
    }

    proptest! {
        #[test]
        fn values_are_those_of_floating_point_as_far_as_that_reaches((text, due) in formulas()) {
            match value(&text) {
                Ok(found) => prop_assert!((found as f64 - due).abs() <= 1.0 + due.abs() * 1e-9, "{text} = {found}, due {due}"),
                Err(FormulaError::OutOfRange) => prop_assert!(!(1e-6..=9e18).contains(&due), "{text}: due {due}"),
                Err(FormulaError::TooLong { bytes }) => prop_assert!(bytes == text.len()),
                Err(other) => prop_assert!(false, "{text}: {other}"),
            }
        }

        #[test]
        fn no_text_panics(text in "[a-z_0-9.+*/(), -]{0,64}") {
            let _neither_matters = value(&text);
        }
    }
}
