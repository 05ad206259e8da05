//! The page: raw results as one HTML document that needs no network, no script and nobody to explain it.
//!
//! Reads what `report` wrote and measures nothing. `run` is the file, `side` who was measured, `head` what to know first,
//! `section` one scenario, `figures`, `phases`, `pictures` and `doubts` what stands in it.

mod bars;
mod doubts;
mod figures;
mod head;
mod html;
mod phases;
mod pictures;
mod recorded;
mod run;
mod section;
mod side;
mod timeline;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use charts::escape;

pub(crate) use crate::page::doubts::merged_doubts;
use crate::page::run::Run;
use crate::page::side::Sides;

/// Writes a page of the raw results in `files` to `out`, or beside the first of them as `.html`. Returns where it is.
///
/// # Errors
/// A file that is not raw results, one that the page would overwrite, and what the file system says.
pub fn write(files: &[PathBuf], out: Option<&Path>) -> Result<PathBuf> {
    let first = files.first().context("no raw results to make a page of")?;
    let out = out.map_or_else(|| first.with_extension("html"), Path::to_owned);
    if files.contains(&out) {
        bail!("{} would be overwritten by its own page: name another file with --out", out.display());
    }
    let runs = files.iter().map(|file| Run::read(file)).collect::<Result<Vec<_>, _>>()?;
    fs::write(&out, document(&runs)).with_context(|| format!("writing {}", out.display()))?;
    Ok(out)
}

/// The whole page.
fn document(runs: &[Run]) -> String {
    let title = match runs {
        [run] => head::title(run),
        _ => format!("{} runs", runs.len()),
    };
    let title = format!("corecast-bench: {title}");
    let sections: String =
        runs.iter().enumerate().map(|(place, run)| article(run, place + 1, runs.len())).collect();
    let introduction = match runs.len() {
        1 => String::new(),
        _ => {
            html::text("h1", "", &title)
                + &html::text(
                    "p",
                    "quiet",
                    "Only sides of one run can be compared: between runs the machine changes by more than what is measured.",
                )
        }
    };
    format!(
        r#"<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>
<title>{title}</title>
<style>
{STYLE}{charts}</style>
</head>
<body>
<main>
{introduction}{sections}{READING}
</main>
</body>
</html>
"#,
        title = escape(&title),
        charts = charts::STYLE,
    )
}

/// One run: its head, what was due, what can be compared across scenarios, and each scenario.
fn article(run: &Run, place: usize, runs: usize) -> String {
    let sides = Sides::of(run);
    let id = |scenario: usize| format!("run{place}-{}", scenario + 1);
    let mut parts = vec![head::head(run, if runs == 1 { "h1" } else { "h2" })];
    if !run.table.is_empty() {
        parts.push(html::text("h2", "", "What was due"));
        parts.push(figures::figures("What was due, and what was measured", &run.table, &sides));
    }
    let overview = pictures::overview(run, &sides);
    if !overview.is_empty() {
        parts.push(html::text("h2", "", "Across scenarios"));
        parts.push(section::gallery(&overview));
    }
    parts.push(html::text("h2", "", if run.outcomes.is_empty() { "No scenarios" } else { "Scenarios" }));
    if run.outcomes.len() > 1 {
        let links = run.outcomes.iter().enumerate().map(|(scenario, outcome)| {
            format!(r##"<li><a href="#{}">{}</a></li>"##, id(scenario), escape(&outcome.title))
        });
        parts.push(html::element("nav", "", &html::element("ol", "", &links.collect::<String>())));
    }
    let scenarios = run.outcomes.iter().enumerate();
    parts.extend(scenarios.map(|(scenario, outcome)| section::section(outcome, &sides, &id(scenario))));
    html::element("article", "", &parts.join("\n"))
}

const STYLE: &str = include_str!("page/style.css");
/// The page may show what is in it and load nothing: whoever mails it around needs to trust only its text.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const READING: &str = "<footer><p>A figure is the median of its samples; below it stand the lowest and the highest. \
<b>Ours</b> is the server that was measured; the <b>floor</b> is a plain loop of <code>send()</code> calls with the same \
payloads on the same core. A flaw means that something was lost or damaged: a server that delivers less is cheaper. A doubt \
means that a figure may say more about the generator or the machine than about the server.</p></footer>";

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags that are open at the end, or what is wrong.
    fn check(document: &str) -> Result<usize, String> {
        let mut open: Vec<&str> = Vec::new();
        let body = document.strip_prefix("<!DOCTYPE html>\n").ok_or("no doctype")?;
        // Style sheets are text to HTML: their characters are no markup, and they have no "<".
        let mut pieces = body.split('<');
        if pieces.next() != Some("") {
            return Err("text before the first tag".to_owned());
        }
        let mut elements = 0;
        for piece in pieces {
            let (tag, text) = piece.split_once('>').ok_or_else(|| format!("<{piece} does not end"))?;
            let inside_style = open.last() == Some(&"style") || tag == "style";
            if text.contains('>') && !inside_style {
                return Err(format!("a bare > in {text:?}"));
            }
            let entities = text.split('&').skip(1);
            if let Some(bare) = entities.into_iter().find(|after| after.find(';').is_none_or(|end| end > 6)) {
                return Err(format!("a bare & before {bare:?}"));
            }
            if tag.matches('"').count() % 2 == 1 {
                return Err(format!("quotes in <{tag}>"));
            }
            elements += 1;
            match tag.strip_prefix('/') {
                Some(name) if open.pop() != Some(name) => return Err(format!("</{name}> closes another")),
                None if !tag.ends_with('/') => open.push(tag.split_whitespace().next().unwrap_or_default()),
                _ => {}
            }
        }
        if open.is_empty() { Ok(elements) } else { Err(format!("never closed: {open:?}")) }
    }

    fn committed_runs() -> Vec<PathBuf> {
        let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs");
        let folders = fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().path());
        let files = folders.filter(|path| path.is_dir()).flat_map(|folder| fs::read_dir(folder).unwrap());
        let files = files.map(|entry| entry.unwrap().path());
        let mut runs: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
        runs.sort();
        runs
    }

    #[test]
    fn every_committed_run_is_a_well_formed_page_with_each_of_its_scenarios() {
        let files = committed_runs();
        assert!(files.len() > 3, "the runs of this repository: {files:?}");
        for file in files {
            let run = Run::read(&file).unwrap();
            let titles: Vec<String> = run.outcomes.iter().map(|outcome| escape(&outcome.title)).collect();
            let page = document(&[run]);
            check(&page).unwrap_or_else(|wrong| panic!("{}: {wrong}", file.display()));
            for title in titles {
                assert!(page.contains(&format!("<h3>{title}</h3>")), "{}: {title}", file.display());
            }
            assert!(page.contains("<svg"), "{}", file.display());
            assert!(!page.contains("NaN"), "{}", file.display());
        }
    }

    #[test]
    fn a_page_asks_nobody_for_anything() {
        let page = document(&[Run::read(&committed_runs()[0]).unwrap()]);
        for word in ["<script", "<link", "<img", "src=", "@import", "url(", "https:"] {
            assert!(!page.contains(word), "{word}");
        }
        let links = page.match_indices("href=\"").filter(|(at, _)| !page[at + 6..].starts_with('#'));
        assert_eq!(links.count(), 0, "links lead to places on the page");
    }

    #[test]
    fn hostile_names_stay_text() {
        let hostile = r#"</style><script>alert(1)</script>\" & 'x'"#;
        let run = format!(
            r#"{{"utc": "{hostile}", "command": ["{hostile}"], "machine": {{"{hostile}": "{hostile}", "kernel": "{hostile}"}},
                "failures": ["{hostile}"], "peers": [{{"name": "{hostile}"}}],
                "table": [{{"name": "{hostile}", "unit": "{hostile}", "samples": [1, 2], "target": "{hostile}",
                            "verdict": "{hostile}", "peers": {{"{hostile}": {{"samples": [1]}}}}}}],
                "outcomes": [{{"title": "{hostile}", "server": "{hostile}", "notes": ["{hostile}"],
                              "parameters": {{"{hostile}": ["{hostile}"]}}, "details": [{{"{hostile}": "{hostile}"}}],
                              "phases": [{{"side": "{hostile}", "load": "{hostile}", "doubts": ["{hostile}"]}}],
                              "figures": [{{"name": "{hostile}", "unit": "{hostile}", "samples": [1]}}]}}]}}"#
        );
        let page = document(&[serde_json::from_str(&run).unwrap()]);
        check(&page).unwrap();
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn runs_that_measured_nothing_and_several_runs_are_pages_too() {
        let empty = || serde_json::from_str::<Run>(r#"{"outcomes": [], "failures": ["all"]}"#).unwrap();
        check(&document(&[empty()])).unwrap();
        let page = document(&[empty(), empty()]);
        check(&page).unwrap();
        assert!(page.contains("2 runs") && page.matches("<article>").count() == 2, "{page}");
    }

    #[test]
    fn the_checker_finds_faults() {
        let checked = |body: &str| check(&format!("<!DOCTYPE html>\n{body}"));
        assert_eq!(checked("<a><b/>&amp;</a>"), Ok(3));
        for fault in ["<a>", "<a></b>", "<a>></a>", "<a>x & y</a>", "<a b=\"></a>", "text", "<a"] {
            assert!(checked(fault).is_err(), "{fault}");
        }
    }
}
