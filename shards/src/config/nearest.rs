//! The known word nearest to a mistyped one.

/// The candidate with the fewest edits to `word`, if they are few enough to be a slip: a third of its letters, at least one.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "WORD"?`, or the list of what is known when nothing is near.
pub fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, candidates.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("known here: {}", candidates.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// Levenshtein's distance: insertions, deletions and replacements of characters.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let known = ["listen", "admin", "ping_interval"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("ping_intervall", known), Some("ping_interval"));
        assert_eq!(nearest("zebra", known), None);
        assert_eq!(hint("zebra", known), "known here: listen, admin, ping_interval");
    }
}
