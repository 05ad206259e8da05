//! The few elements of HTML that the page is made of. All are closed, so that the page is XML as well.

use charts::escape;

/// `<name class="class">content</name>`; `content` is markup.
pub fn element(name: &str, class: &str, content: &str) -> String {
    match class {
        "" => format!("<{name}>{content}</{name}>"),
        _ => format!(r#"<{name} class="{class}">{content}</{name}>"#),
    }
}

/// An element with text in it.
pub fn text(name: &str, class: &str, text: &str) -> String {
    element(name, class, &escape(text))
}

/// A table that scrolls sideways where it is wider than the screen. Cells are markup, each with its tags.
///
/// `caption` says what is in it, to those who jump from table to table.
pub fn table(class: &str, caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let head: String =
        head.iter().map(|column| format!(r#"<th scope="col">{}</th>"#, escape(column))).collect();
    let rows: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", row.concat())).collect();
    let caption = escape(caption);
    // What scrolls must be reachable by keyboard, and have a name when it is.
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table class=\"{class}\">\n\
         <caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

/// A cell that names its row.
pub fn row_head(content: &str) -> String {
    format!(r#"<th scope="row">{}</th>"#, escape(content))
}

/// A cell with a number or a word.
pub fn cell(content: &str) -> String {
    text("td", "", content)
}

/// What opens when asked to; `content` is markup.
pub fn folded(summary: &str, content: &str) -> String {
    format!("<details><summary>{}</summary>\n{content}</details>\n", escape(summary))
}

/// Names beside values, both as text.
pub fn pairs<'a>(pairs: impl Iterator<Item = (&'a str, String)>) -> String {
    let rows: String = pairs
        .map(|(name, value)| format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(&value)))
        .collect();
    element("dl", "facts", &rows)
}

/// Paragraphs of a kind in a list; nothing where there are none.
pub fn list(class: &str, items: impl Iterator<Item = String>) -> String {
    let items: String = items.map(|item| text("li", "", &item)).collect();
    if items.is_empty() { items } else { element("ul", class, &items) + "\n" }
}
