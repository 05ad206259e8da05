//! Rows of text under each other.

/// `rows`, each cell but the last as wide as the widest of its column.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `text` in lines of at most [`WIDTH`] characters, each after `before`.
pub fn wrapped(text: &str, before: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        let is_full = before.chars().count() + line.chars().count() + 1 + word.chars().count() > WIDTH;
        if is_full && !line.is_empty() {
            lines.push_str(&format!("{before}{line}\n"));
            line.clear();
        }
        let blank = if line.is_empty() { "" } else { " " };
        line.push_str(&format!("{blank}{word}"));
    }
    lines + &format!("{before}{line}\n")
}

/// Of a line, as most terminals have them at least.
const WIDTH: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["knob", "now", "due"]), row(["net.core.somaxconn", "4096", ""])];
        assert_eq!(columns(&rows), "knob                now   due\nnet.core.somaxconn  4096\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn long_text_is_wrapped_between_words() {
        let text = "word ".repeat(40);
        let lines = wrapped(&text, "    ");
        assert!(lines.lines().all(|line| line.starts_with("    word") && line.len() <= WIDTH), "{lines}");
        assert_eq!(lines.matches("word").count(), 40);
    }
}
