//! One scenario on the page: what to know about it, its charts, its figures, and everything raw below.

use charts::escape;
use serde_json::Value;

use crate::page::doubts::doubts;
use crate::page::figures::{figures, tally};
use crate::page::head::plain;
use crate::page::html::{element, folded, list, pairs, text};
use crate::page::phases::phases;
use crate::page::pictures;
use crate::page::run::Outcome;
use crate::page::side::Sides;

/// Characters of details that a page carries for one scenario. More is in the file that it was made of.
const DETAILS_MAX: usize = 64 * 1024;

/// A scenario as a section that is open and can be folded; `id` is where links lead.
pub fn section(outcome: &Outcome, sides: &Sides, id: &str) -> String {
    let doubts = doubts(&outcome.phases);
    let mut badges = String::new();
    if !outcome.flaws.is_empty() {
        badges.push_str(&text("span", "badge bad", "✗ flawed"));
    }
    if !doubts.is_empty() {
        badges.push_str(&text("span", "badge odd", "? doubts"));
    }
    let about = outcome.figures.iter().filter(|figure| !figure.target.is_null()).cloned().collect::<Vec<_>>();
    if !about.is_empty() {
        badges.push_str(&text("span", "quiet", &tally(&about)));
    }
    let summary = format!("<summary><h3>{}</h3>{badges}</summary>\n", escape(&outcome.title));
    let content = [
        list("warnings bad", outcome.flaws.iter().map(|flaw| format!("Flawed: {flaw}"))),
        peers(outcome),
        list("warnings odd", doubts.into_iter()),
        list("notes", outcome.notes.iter().cloned()),
        gallery(&pictures::of_outcome(outcome, sides)),
        figures(&format!("Figures of {}", outcome.title), &outcome.figures, sides),
        phases(&outcome.phases),
        details(&outcome.details),
        setting(outcome),
    ];
    format!("<details open=\"open\" class=\"scenario\" id=\"{id}\">{summary}{}</details>\n", content.concat())
}

/// Charts beside each other, as many as fit.
pub fn gallery(drawings: &[charts::Drawing]) -> String {
    let figures: String = drawings.iter().map(|drawing| element("figure", "", &drawing.inline())).collect();
    if figures.is_empty() { figures } else { element("div", "gallery", &figures) + "\n" }
}

fn peers(outcome: &Outcome) -> String {
    let lines = outcome.peers.iter().flat_map(|(name, peer)| {
        let out = peer.is_out.then(|| format!("{name} failed, and was measured no further"));
        out.into_iter().chain(peer.flaws.iter().map(move |flaw| format!("{name} flawed: {flaw}")))
    });
    list("warnings bad", lines)
}

fn details(details: &[Value]) -> String {
    if details.is_empty() {
        return String::new();
    }
    // What was parsed can be written: this cannot fail, and would cost the page nothing but its details.
    let json = serde_json::to_string_pretty(details).unwrap_or_default();
    let end = json.char_indices().map(|(at, _)| at).find(|at| *at >= DETAILS_MAX).unwrap_or(json.len());
    let cut = match end < json.len() {
        true => text("p", "quiet", "The rest is in the raw results that this page was made of."),
        false => String::new(),
    };
    folded("Details, raw", &(element("pre", "scroll", &escape(&json[..end])) + &cut))
}

/// As run: parameters and commands.
fn setting(outcome: &Outcome) -> String {
    let parameters = outcome.parameters.as_object().into_iter().flatten();
    let parameters = parameters.map(|(name, value)| (name.as_str(), plain(value)));
    let server =
        std::iter::once(("server", outcome.server.clone())).filter(|(_, command)| !command.is_empty());
    let peers = outcome.peers.iter().map(|(name, peer)| (name.as_str(), peer.command.clone()));
    folded("Parameters and commands", &pairs(parameters.chain(server).chain(peers)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        section(&serde_json::from_str(text).unwrap(), &Sides::default(), "s1")
    }

    #[test]
    fn flaws_and_doubts_stand_before_the_figures_and_nothing_folds_them_away() {
        let section = shown(
            r#"{"title": "a <b>", "flaws": ["lost some"], "notes": ["a note"],
                "peers": {"uws": {"command": "uws {port}", "is_out": true, "flaws": ["gone"]}},
                "phases": [{"side": "server", "doubts": ["busy"]}], "figures": [{"name": "CPU", "samples": [1]}]}"#,
        );
        let at = |text: &str| section.find(text).unwrap_or_else(|| panic!("no {text:?} in {section}"));
        let before =
            ["Flawed: lost some", "uws failed", "uws flawed: gone", "busy (windows: ours 1 of 1)", "a note"];
        assert!(before.iter().all(|text| at(text) < at("Figures of a &lt;b&gt;")), "{section}");
        assert_eq!(
            section[..at("a note")].matches("<details").count(),
            1,
            "only the scenario's own: {section}"
        );
        assert!(section.contains("✗ flawed") && section.contains("? doubts"), "{section}");
    }

    #[test]
    fn details_are_cut_at_their_bound_and_that_is_said() {
        let section = shown(&format!(r#"{{"details": ["{}"]}}"#, "µ".repeat(DETAILS_MAX)));
        assert!(
            section.len() < 2 * DETAILS_MAX && section.contains("The rest is in the raw results"),
            "{}",
            section.len()
        );
        assert!(!shown(r#"{"details": [1]}"#).contains("The rest is"));
    }
}
