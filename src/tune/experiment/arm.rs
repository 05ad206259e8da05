//! One arm of an experiment: what is different about the machine, the server and its environment.

use clap::Parser;
use serde::Serialize;
use shards::config::{Input, Wrong};

use super::reader::{Fields, Reader};
use crate::cli::{Cli, Command};
use crate::tune::outcome::is_same;
use crate::tune::target::Target;

/// See [`Plan::arms`](super::plan::Plan::arms). An arm without keys is corecast as it is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Arm {
    /// What reports call it. Default: its letter.
    pub label: Option<String>,
    /// Kernel parameters by name and files below /sys by path, with their values, in the order of the file (`sysctl` before
    /// `sys`). They are set in the network namespace of the sample.
    pub knobs: Vec<Knob>,
    /// Knobs that belong to no network namespace are set for the whole host, journalled, and reverted after the sample.
    /// Needs `--host` on the command line. Default false: such knobs are refused.
    pub host: bool,
    /// Further flags of `corecast serve`, each word an item.
    pub server: Vec<String>,
    /// Variables of the server (and of the generator beside it).
    pub environment: Vec<(String, String)>,
    /// Cores of the server, as `corecast serve --cores` takes them. Default: the first usable one.
    pub cores: Option<String>,
}

/// A value of the kernel that an arm sets.
#[derive(Debug, Clone, Serialize)]
pub struct Knob {
    /// Which.
    pub target: Target,
    /// To what.
    pub value: String,
}

impl Knob {
    /// Whether each network namespace may have its own.
    pub fn is_of_network(&self) -> bool {
        self.target.is_of_network()
    }
}

/// A knob that was set for a sample.
#[derive(Debug, Clone, Serialize)]
pub struct SetKnob {
    /// What was set to what.
    #[serde(flatten)]
    pub knob: Knob,
    /// What the kernel made of it.
    pub found: String,
}

impl SetKnob {
    /// Whether the sample had the value that the arm names, however the kernel spells it.
    pub fn holds(&self) -> bool {
        is_same(&self.knob.value, &self.found)
    }
}

const KEYS: [&str; 7] = ["label", "sysctl", "sys", "host", "server", "environment", "cores"];

impl Arm {
    /// Reads the table of an arm.
    pub(super) fn read(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Self> {
        reader.known(fields, &KEYS);
        let label = reader.optional(fields, "label", |input| input.line("a few words").map(str::to_owned));
        let host = reader.optional(fields, "host", Input::boolean).unwrap_or(false);
        let mut knobs = Vec::new();
        for (key, is_path) in [("sysctl", false), ("sys", true)] {
            knobs.extend(reader.entries(fields, key, |name, input| knob(name, input, is_path, host)));
        }
        let server = reader.optional(fields, "server", |input| {
            let due = "flags of corecast serve, for example [\"--driver\", \"epoll\"]";
            let words: Vec<String> = input.list(due)?.into_iter().map(|word| word.into_owned()).collect();
            check_flags(&words).map(|()| words)
        });
        let environment = reader.entries(fields, "environment", |name, input| {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            match is_name && !name.is_empty() {
                true => Ok((name.to_owned(), scalar(input)?)),
                false => Err(Wrong::text(name, "the name of a variable: letters, digits and '_'")),
            }
        });
        let cores = reader.optional(fields, "cores", |input| {
            let due = "cores with commas, for example \"0\" or \"0,1\"";
            let text = input.text(due)?;
            let is_core =
                |part: &str| part.parse::<u16>().is_ok() && part.bytes().all(|b| b.is_ascii_digit());
            if text.split(',').all(is_core) { Ok(text.to_owned()) } else { Err(input.wrong(due)) }
        });
        Some(Self { label, knobs, host, server: server.unwrap_or_default(), environment, cores })
    }

    /// Its knobs that no network namespace has.
    pub fn host_wide(&self) -> impl Iterator<Item = &Knob> {
        self.knobs.iter().filter(|knob| !knob.is_of_network())
    }
}

fn knob(name: &str, input: &Input, is_path: bool, host: bool) -> Result<Knob, Wrong> {
    let target: Target =
        name.parse().map_err(|error: crate::tune::target::TargetError| Wrong::Sentence(error.to_string()))?;
    if is_path != matches!(target, Target::File(_)) {
        let sentence =
            "names of kernel parameters belong into sysctl = {..}, paths below /sys into sys = {..}";
        return Err(Wrong::Sentence(sentence.to_owned()));
    }
    let knob = Knob { target, value: scalar(input)? };
    if !host && !knob.is_of_network() {
        let sentence =
            "no network namespace has its own: say host = true in this arm, and --host on the command line";
        return Err(Wrong::Sentence(sentence.to_owned()));
    }
    Ok(knob)
}

/// A string or an integer, as text.
fn scalar(input: &Input) -> Result<String, Wrong> {
    match input {
        Input::Integer(value) => Ok(value.to_string()),
        _ => input.line("a string or a whole number").map(str::to_owned),
    }
}

/// Whether `corecast serve` knows these flags and takes their values. The words go through `corecast-bench --server`,
/// which splits a command at blanks.
fn check_flags(words: &[String]) -> Result<(), Wrong> {
    if let Some(word) = words.iter().find(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        return Err(Wrong::text(word, "words without blanks, each an item of its own"));
    }
    let line = ["corecast", "serve"].into_iter().chain(words.iter().map(String::as_str));
    let sentence = |text: String| Err(Wrong::Sentence(format!("corecast serve takes no such flags: {text}")));
    let args = match Cli::try_parse_from(line).map(|cli| cli.command) {
        Ok(Command::Serve(args)) => args,
        Ok(_) => return sentence("they name another command".to_owned()),
        Err(error) => {
            let text = error.render().to_string();
            let lines: Vec<&str> =
                text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
            let said = lines.join(" ");
            return sentence(said.trim().trim_start_matches("error: ").to_owned());
        }
    };
    let flags = args.settings.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    let inputs = shards::config::Inputs { flags, presets: args.presets, ..Default::default() };
    match shards::config::load(&inputs) {
        Ok(_) => Ok(()),
        Err(errors) => sentence(errors.to_string()),
    }
}
