//! What the parsers promise of any input, however it is cut: one function for each, which panics where the promise is broken.
//!
//! `make fuzz` gives them inputs without end ([`libfuzzer/`](../libfuzzer) has a target for each); plain `cargo test` replays
//! those that were worth keeping, `corpus/NAME/*`. A body has no state between inputs and knows no clock, so a file that
//! fails once fails always. Inputs are what the parser would get, readable in an editor; how they are cut into pieces follows
//! from their own bytes ([`cut`]).

mod broker;
mod consumer;
mod cut;
mod domain;
mod http;
mod kernel;
mod resp;
mod script;
mod session;
mod settings;

#[cfg(test)]
mod replay;

/// A target: its name, which is that of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, in the order of the files that hold them.
pub const TARGETS: [Target; 23] = [
    ("subscriber", broker::subscriber),
    ("commander", broker::commander),
    ("event", consumer::event),
    ("dead_letter", consumer::dead_letter),
    ("message", domain::message),
    ("schema", domain::schema),
    ("envelope", domain::envelope),
    ("head", http::head),
    ("query", http::query),
    ("proc", kernel::proc),
    ("proc_files", kernel::proc_files),
    ("resp", resp::resp),
    ("session", session::session),
    ("config", settings::config),
    ("variables", settings::variables),
    ("words", settings::words),
    ("ledger", corecast::fuzz::ledger),
    ("marks", corecast::fuzz::marks),
    ("addresses", corecast::fuzz::addresses),
    ("profile", corecast::fuzz::profile),
    ("formula", corecast::fuzz::formula),
    ("journal", corecast::fuzz::journal),
    ("plan", corecast::fuzz::plan),
];

/// Runs the body of the target called `name` on `input`.
///
/// # Panics
/// Where the promise is broken, and for a name that no target has.
pub fn run(name: &str, input: &[u8]) {
    let (_, body) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    body(input);
}
