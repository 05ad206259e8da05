//! The readers of `corecast tune`, for [`fuzz`](crate::fuzz).

use std::path::Path;

use crate::tune::experiment::plan::Plan;
use crate::tune::formula::{Facts, Formula};
use crate::tune::journal::Content;
use crate::tune::profile::Profile;

/// A profile is taken or refused with its name, and each of its knobs says what it should be on any machine, or why not.
pub fn profile(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Profile::of_file(Path::new("fuzz.toml"), text) {
        Ok(profile) => {
            for knob in &profile.knobs {
                for facts in FACTS {
                    for now in
                        ["", "0", "1 2 3", "9223372036854775807", "18446744073709551615", "madvise", "x\ty"]
                    {
                        let due = knob.due(&facts, now);
                        assert!(due.is_ok_and(|due| !due.contains('\n')) || !now.contains('\n'));
                    }
                }
            }
        }
        Err(error) => assert!(error.to_string().contains("fuzz"), "{error}"),
    }
}

/// A formula has a value or a reason, the same each time, and is shown as it reads.
pub fn formula(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let formula = match Formula::parse(text) {
        Ok(formula) => formula,
        Err(error) => return assert!(!error.to_string().is_empty(), "refused without a word"),
    };
    let again = Formula::parse(&formula.to_string()).expect("it is shown as it reads");
    for facts in FACTS {
        for current in [0, 1, u64::MAX] {
            let value = formula.evaluate(&facts, current);
            assert_eq!(value, again.evaluate(&facts, current), "two values of {text:?}");
            assert!(
                value.is_ok_and(|value| value <= i64::MAX as u64)
                    || formula.evaluate(&facts, current).is_err()
            );
        }
    }
}

/// Whatever a journal holds, what can be read of it is: a line more changes nothing before it.
pub fn journal(input: &[u8]) {
    let content = Content::parse(input);
    let lines = input.iter().filter(|byte| **byte == b'\n').count();
    assert!(content.corrupted.iter().all(|line| (1..=lines).contains(line)), "a line that isn't there");
    assert!(content.outstanding().count() <= content.changes.len(), "more changes than were made");
    // What was not finished was not written.
    let unfinished = Content::parse(&[input, b"\n{\"line\":"].concat());
    let finished = Content::parse(&[input, b"\n"].concat());
    assert_eq!(unfinished.changes, finished.changes, "half a line counts");
    assert_eq!(unfinished.corrupted, finished.corrupted, "half a line counts");
    for change in content.outstanding() {
        let target = change.target.to_string();
        assert!(
            !target.split(['/', '.']).any(|part| part == "..") && !target.contains("/../"),
            "{target} leaves its folder"
        );
    }
}

/// A file of an experiment is taken within its bounds, or refused with every fault.
pub fn plan(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Plan::parse(Path::new("fuzz.toml"), text) {
        Ok(plan) => {
            assert!(plan.samples() > 0 && plan.margin >= 0.0 && plan.duration > std::time::Duration::ZERO);
        }
        Err(faults) => assert!(!faults.to_string().is_empty(), "refused without a word"),
    }
}

/// The least, a usual and the largest machine.
const FACTS: [Facts; 3] = [
    Facts {
        connections: 0,
        memory_bytes: 0,
        cores: 0,
        page_bytes: 0,
        listen_backlog: 0,
        reserved_descriptors: 0,
    },
    Facts {
        connections: 100_000,
        memory_bytes: 16 << 30,
        cores: 8,
        page_bytes: 4096,
        listen_backlog: 65_535,
        reserved_descriptors: 88,
    },
    Facts {
        connections: u64::MAX,
        memory_bytes: u64::MAX,
        cores: u64::MAX,
        page_bytes: u64::MAX,
        listen_backlog: u64::MAX,
        reserved_descriptors: u64::MAX,
    },
];
