//! Text on its way into XML, and how wide it will be.

/// Text as it stands between tags and inside quoted attributes of XML and HTML.
///
/// Characters that XML 1.0 forbids (most control characters) become U+FFFD: a browser would refuse the whole document.
///
/// Source: XML 1.0 section 2.2 (Char) and 2.4 (predefined entities).
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(character),
            '\u{FFFE}' | '\u{FFFF}' => escaped.push(char::REPLACEMENT_CHARACTER),
            control if control < ' ' => escaped.push(char::REPLACEMENT_CHARACTER),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// About how wide `text` is in a proportional font of `size`: rather too wide than too narrow.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let ems: f64 = text
        .chars()
        .map(|character| match character {
            'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' => 0.32,
            'm' | 'w' | 'M' | 'W' | '%' => 0.9,
            'A'..='Z' => 0.7,
            wide if wide >= '\u{1100}' => 1.0,
            _ => 0.58,
        })
        .sum();
    ems * size
}

/// `text` in lines of at most `width_max`, broken at blanks, and inside a word only where it is wider than a line.
pub(crate) fn wrap(text: &str, size: f64, width_max: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let joined = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if width(&joined, size) <= width_max {
            line = joined;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for character in word.chars() {
            line.push(character);
            if width(&line, size) > width_max && line.chars().count() > 1 {
                line.pop();
                lines.push(std::mem::replace(&mut line, character.to_string()));
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// `text` cut to `width_max`, with an ellipsis where something is missing.
pub(crate) fn cut(text: &str, size: f64, width_max: f64) -> String {
    if width(text, size) <= width_max {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if width(&kept, size) + width("…", size) > width_max {
            kept.pop();
            break;
        }
    }
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_becomes_a_tag_an_entity_or_the_end_of_an_attribute() {
        assert_eq!(escape(r#"<b a="1" c='2'>&amp;"#), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;");
        assert_eq!(escape("a\u{0}b\u{1b}c\u{FFFF}d\ne"), "a\u{FFFD}b\u{FFFD}c\u{FFFD}d\ne");
        assert_eq!(escape("µs ≤ 3"), "µs ≤ 3");
    }

    #[test]
    fn lines_are_broken_at_blanks_and_no_word_is_lost() {
        let text = "1,000 connections in 10 rooms each, all of them dirty";
        let lines = wrap(text, 10.0, 120.0);
        assert!(lines.len() > 1);
        assert_eq!(lines.join(" "), text);
        assert!(lines.iter().all(|line| width(line, 10.0) <= 120.0), "{lines:?}");
    }

    #[test]
    fn a_word_wider_than_a_line_is_broken_and_kept() {
        let lines = wrap("short aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 10.0, 60.0);
        assert_eq!(lines.concat(), "shortaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        assert!(lines.iter().all(|line| width(line, 10.0) <= 60.0), "{lines:?}");
        assert!(wrap("", 10.0, 60.0).is_empty());
        assert_eq!(wrap("wide", 10.0, 0.0), ["w", "i", "d", "e"], "a line takes at least one character");
    }

    #[test]
    fn a_cut_text_says_so() {
        assert_eq!(cut("short", 10.0, 100.0), "short");
        let cut = cut("a text that is too long", 10.0, 60.0);
        assert!(cut.ends_with('…') && width(&cut, 10.0) <= 60.0, "{cut}");
    }
}
