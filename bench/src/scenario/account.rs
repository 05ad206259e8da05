//! The account of a run in which connections end and come back: what was owed is what came, or was missed by being away.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::receivers::Receivers;
use crate::stage::PATIENCE;
use crate::tally::{Counts, Settled};

/// Between two looks at what is still missing.
const LOOK: Duration = Duration::from_millis(20);

/// Messages times the members that they were published for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// To every connection, whether it was there or not.
    pub owed: u64,
    /// What came, each once.
    pub delivered: u64,
    /// What was missed by a connection that had ended and was not back: its end told it so.
    pub absent: u64,
    /// What a connection that was there never had: lost without a word.
    pub lost: u64,
    /// How connections ended that did not say goodbye, by close code.
    pub counts: Counts,
}

impl Account {
    /// Of all that was counted, and what was still open in the end.
    pub fn of(owed: u64, counts: Counts, settled: Settled) -> Self {
        Self {
            owed,
            delivered: counts.delivered,
            absent: counts.absent + settled.absent,
            lost: counts.gaps + settled.missing,
            counts,
        }
    }

    /// What is wrong with it.
    pub fn flaws(&self) -> Vec<String> {
        let mut flaws = Vec::new();
        let Self { owed, delivered, absent, lost, counts } = self;
        if *lost > 0 {
            flaws.push(format!("{lost} deliveries were lost by connections that were there"));
        }
        let wrong = [
            ("duplicates", counts.duplicates),
            ("out of order", counts.out_of_order),
            ("of another room", counts.wrong_room),
            ("unreadable", counts.unreadable),
        ];
        let wrong = wrong.into_iter().filter(|(_, count)| *count > 0);
        flaws.extend(wrong.map(|(what, count)| format!("{count} deliveries were {what}")));
        if delivered + absent + lost != *owed {
            flaws.push(format!(
                "the account doesn't balance: {owed} were owed, {delivered} came, {absent} were missed by being away, \
                 {lost} were lost"
            ));
        }
        flaws
    }
}

/// Waits until nobody who is there misses anything of what each room has had, or nothing comes any more.
pub fn settle(receivers: &mut Receivers, heads: &[u32]) -> Result<Settled> {
    let (mut seen, mut since) = (receivers.delivered(), Instant::now());
    loop {
        let settled = receivers.settle(heads)?;
        if settled.missing == 0 || since.elapsed() > PATIENCE {
            return Ok(settled);
        }
        std::thread::sleep(LOOK);
        let now = receivers.delivered();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(delivered: u64, absent: u64, gaps: u64, settled: Settled) -> Account {
        Account::of(100, Counts { delivered, absent, gaps, ..Counts::default() }, settled)
    }

    #[test]
    fn what_came_and_what_was_missed_by_being_away_make_up_what_was_owed() {
        let books = account(90, 4, 0, Settled { missing: 0, absent: 6 });
        assert_eq!((books.absent, books.lost), (10, 0));
        assert_eq!(books.flaws(), Vec::<String>::new());
    }

    #[test]
    fn what_is_lost_by_who_was_there_is_a_flaw_even_if_the_account_balances() {
        for books in [
            account(90, 4, 1, Settled { missing: 0, absent: 5 }),
            account(90, 4, 0, Settled { missing: 1, absent: 5 }),
        ] {
            assert_eq!(books.flaws().len(), 1, "{books:?}");
        }
    }

    #[test]
    fn an_account_that_does_not_balance_and_a_repeated_delivery_are_flaws() {
        assert_eq!(account(90, 0, 0, Settled::default()).flaws().len(), 1);
        let counts = Counts { delivered: 100, duplicates: 2, ..Counts::default() };
        assert_eq!(Account::of(100, counts, Settled::default()).flaws(), ["2 deliveries were duplicates"]);
    }
}
