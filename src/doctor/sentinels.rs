//! Sentinels: whether each of them answers, and whether they agree.

use shards::config::{RedisAddress, RedisTarget, Sentinels};

use super::finding::Finding;
use crate::redis::{located, place};

const SENTINELS: &str = "redis.sentinels";

/// What one of them said: where the primary is, or why it can't be asked.
type Word = Result<String, String>;

/// The Redis that the sentinels of `target` name, where it has some, and what is to be said of them.
pub fn judge(target: &RedisTarget) -> (RedisTarget, Option<Finding>) {
    let RedisAddress::Sentinel(sentinels) = &target.address else { return (target.clone(), None) };
    let mut address = None;
    let mut words = Vec::new();
    for server in &sentinels.servers {
        let alone = Sentinels { servers: vec![server.clone()], ..Sentinels::clone(sentinels) };
        let found = located(&target.at(RedisAddress::Sentinel(Box::new(alone))));
        let word = found.as_ref().map(place).map_err(|failure| failure.sentence.clone());
        words.push((server.to_string(), word));
        address = address.or(found.ok());
    }
    let located = target.at(address.unwrap_or_else(|| target.address.clone()));
    (located, Some(judge_words(&sentinels.primary, &words)))
}

fn judge_words(primary: &str, words: &[(String, Word)]) -> Finding {
    let silent: Vec<&str> =
        words.iter().filter_map(|(_, word)| word.as_ref().err().map(String::as_str)).collect();
    let mut places: Vec<&String> = words.iter().filter_map(|(_, word)| word.as_ref().ok()).collect();
    places.sort_unstable();
    places.dedup();
    let count = words.len();
    match (places.as_slice(), silent.as_slice()) {
        ([], silent) => Finding::bad(SENTINELS, silent.first().copied().unwrap_or_default().to_owned())
            .due("one sentinel that answers; without it the primary is not found")
            .cure(format!("redis-cli -h SENTINEL -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME {primary}")),
        ([_, _, ..], _) => Finding::warn(
            SENTINELS,
            format!("{count} sentinels name {} primaries of {primary}", places.len()),
        )
        .due("one; each is tried, and whoever has another role is left")
        .cure(format!(
            "redis-cli -h SENTINEL -p 26379 SENTINEL MASTER {primary}  # of each: config-epoch, flags"
        )),
        ([place], []) if count == 1 => Finding::warn(
            SENTINELS,
            format!("one sentinel says that {primary} is {place}"),
        )
        .due("the others too: a failover is heard from whoever is left, and one may be gone with the primary")
        .cure("corecast serve --redis redis+sentinel://A:26379,B:26379,C:26379/NAME"),
        ([place], []) => Finding::ok(SENTINELS, format!("{count} sentinels agree that {primary} is {place}")),
        ([place], [first, ..]) => Finding::warn(
            SENTINELS,
            format!("{} of {count} sentinels say that {primary} is {place}; {first}", count - silent.len()),
        )
        .due("all of them")
        .cure("redis-cli -h SENTINEL -p 26379 PING"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn sentinels_answer_and_agree() {
        let judged = |words: &[Result<&str, &str>]| {
            let owned = |word: &Result<&str, &str>| word.map(str::to_owned).map_err(str::to_owned);
            let words: Vec<_> = words.iter().map(|word| ("s:1".to_owned(), owned(word))).collect();
            judge_words("orders", &words).level
        };
        assert_eq!(judged(&[Ok("a:1"), Ok("a:1"), Ok("a:1")]), Level::Ok);
        assert_eq!(judged(&[Ok("a:1")]), Level::Warn);
        assert_eq!(judged(&[Ok("a:1"), Ok("b:1"), Ok("a:1")]), Level::Warn);
        assert_eq!(judged(&[Ok("a:1"), Err("refused")]), Level::Warn);
        assert_eq!(judged(&[Err("refused"), Err("refused")]), Level::Bad);
    }
}
