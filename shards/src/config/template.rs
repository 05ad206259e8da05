//! Templates as text: literals with places in braces.

use std::fmt;

use super::input::Wrong;
use super::{Template, TemplatePart};

/// Where a template gets its values, and so which places it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// A request: `{query.x}` and `{node_id}`.
    Request,
    /// What arrived on a channel: `{1}`, `{json.x}` and `{node_id}`.
    Channel,
}

impl Template {
    /// Reads `text`; every brace opens or closes a place.
    pub fn parse(text: &str, places: Places) -> Result<Self, Wrong> {
        let due = match places {
            Places::Request => {
                "a text with places, for example \"{query.room}\" or \"user:{query.username}\""
            }
            Places::Channel => "a text with places, for example \"{1}\" or \"user:{1}\"",
        };
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(Wrong::text(text, due));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (literal, after) = rest.split_at(open);
            let place = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let (name, after) =
                place.ok_or_else(|| Wrong::text(text, format!("{due}, each '{{' with its '}}'")))?;
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(literal.to_owned()));
            }
            parts.push(parse_place(name, places)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Literal(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// How many `{1}` it holds.
    pub fn wildcards(&self) -> usize {
        self.parts.iter().filter(|part| **part == TemplatePart::Wildcard).count()
    }

    /// The literal text before its first place.
    pub fn prefix(&self) -> &str {
        literal(self.parts.first())
    }

    /// The literal text after its last place.
    pub fn suffix(&self) -> &str {
        literal(self.parts.last())
    }

    /// Whether it holds a `{json.x}`.
    pub fn asks_payload(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, TemplatePart::Json(_)))
    }

    /// The text of a template without places.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [TemplatePart::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

fn literal(part: Option<&TemplatePart>) -> &str {
    match part {
        Some(TemplatePart::Literal(text)) => text,
        _ => "",
    }
}

fn parse_place(name: &str, places: Places) -> Result<TemplatePart, Wrong> {
    let sentence = |text: String| Err(Wrong::Sentence(text));
    let parameter = |name: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        !name.is_empty() && name.bytes().all(known)
    };
    match (name.split_once('.'), name, places) {
        (_, "node_id", _) => Ok(TemplatePart::NodeId),
        (_, "1", Places::Channel) => Ok(TemplatePart::Wildcard),
        (Some(("query", name)), _, Places::Request) if parameter(name) => {
            Ok(TemplatePart::Query(name.to_owned()))
        }
        (Some(("json", name)), _, Places::Channel) if parameter(name) => {
            Ok(TemplatePart::Json(name.to_owned()))
        }
        (Some(("json", _)), _, Places::Request) => sentence(format!(
            "found {{{name}}}, which only sources know: a route's room comes from the request, as {{query.x}}"
        )),
        (Some((kind @ ("path" | "claim"), _)), _, _) => sentence(format!(
            "found {{{name}}}, but nothing fills {{{kind}.x}} yet: use {{query.x}} in routes, {{1}} in sources"
        )),
        (_, "1", Places::Request) => sentence(
            "found {1}, which only sources know: a route's room comes from the request, as {query.x}".into(),
        ),
        (Some(("query", _)), _, Places::Channel) => sentence(format!(
            "found {{{name}}}, which only routes know: a source's room comes from the channel's name, as {{1}}"
        )),
        (_, _, Places::Request) => sentence(format!("found {{{name}}}, due {{query.NAME}} or {{node_id}}")),
        (_, _, Places::Channel) => sentence(format!("found {{{name}}}, due {{1}} or {{node_id}}")),
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            TemplatePart::Literal(text) => f.write_str(text),
            TemplatePart::Query(name) => write!(f, "{{query.{name}}}"),
            TemplatePart::Wildcard => f.write_str("{1}"),
            TemplatePart::Json(name) => write!(f, "{{json.{name}}}"),
            TemplatePart::NodeId => f.write_str("{node_id}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_and_places_take_turns() {
        let template = Template::parse("a:{query.room}/{node_id}", Places::Request).unwrap();
        assert_eq!(
            template.parts,
            [
                TemplatePart::Literal("a:".to_owned()),
                TemplatePart::Query("room".to_owned()),
                TemplatePart::Literal("/".to_owned()),
                TemplatePart::NodeId,
            ]
        );
        assert_eq!(Template::parse("{1}", Places::Channel).unwrap().parts, [TemplatePart::Wildcard]);
    }

    #[test]
    fn what_nothing_fills_yet_is_refused_by_name() {
        for place in ["path.id", "claim.sub"] {
            let message = Template::parse(&format!("{{{place}}}"), Places::Request).unwrap_err().to_string();
            assert!(message.contains(place) && message.contains("nothing fills"), "{message}");
        }
    }

    #[test]
    fn a_place_of_the_other_table_says_where_it_belongs() {
        let message = |text, places| Template::parse(text, places).unwrap_err().to_string();
        assert!(message("{1}", Places::Request).contains("only sources know"));
        assert!(message("{json.room}", Places::Request).contains("only sources know"));
        assert!(message("{query.room}", Places::Channel).contains("only routes know"));
        assert!(message("{user}", Places::Request).contains("due {query.NAME} or {node_id}"));
        assert!(message("{query.}", Places::Request).contains("due {query.NAME}"));
        assert!(message("a{query.x", Places::Request).contains("each '{' with its '}'"));
        assert!(message("a}", Places::Request).contains("each '{' with its '}'"));
        assert!(message("", Places::Channel).contains("found \"\""));
        assert!(message("a\u{1f}b", Places::Channel).contains("due a text"));
    }

    proptest! {
        #[test]
        fn a_shown_template_reads_back(text in "([a-z:]{0,3}(\\{query\\.[a-z]{1,3}\\}|\\{node_id\\}|\\{1\\}|[{}])){0,4}") {
            if let Ok(template) = Template::parse(&text, Places::Request) {
                prop_assert_eq!(template.to_string(), text);
            }
        }
    }
}
