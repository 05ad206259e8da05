//! An experiment as its file describes it: the hypothesis, the figure that decides, and two arms.
//!
//! The doc comment of a field is its manual. Unknown keys are refused with line, column and the nearest known key, all
//! faults of a file at once, as in the configuration of a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use statistics::{PAIRS_MAX, PAIRS_MIN};

use super::arm::Arm;
use super::reader::{Faults, Fields, Reader};
use shards::config::Wrong;

/// A file below `tuning/experiments/`.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The file's name without its ending; reports are named after it.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// What is compared, in a few words.
    pub title: String,
    /// What is expected of arm B and why, in a sentence. An experiment that refutes it is as good as one that doesn't.
    pub hypothesis: String,
    /// The figure of `corecast-bench` that decides, by its name in the table that the scenario prints: "CPU per delivery",
    /// "latency p99", "deliveries".
    pub metric: String,
    /// Whether a lower or a higher figure is the better one.
    pub better: Better,
    /// Arguments of `corecast-bench`, the scenario first: `["fanout", "--clients", "1000"]`. Those that the experiment
    /// decides itself ([`DECIDED`]) are refused.
    pub scenario: Vec<String>,
    /// Pairs of samples, 6 to 200. Default 20: half as many make the interval 1.4 times as wide.
    pub pairs: usize,
    /// Measured window of a sample. Default 2s. A sample also takes some seconds to start and to connect.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// Unmeasured load before that window. Default 500ms.
    #[serde(serialize_with = "seconds")]
    pub warm_up: Duration,
    /// Samples that are run before the first pair, in the same order, and don't count. Default 2: the first server after a
    /// quiet time finds cold caches and a slow clock.
    pub discard: usize,
    /// The smallest difference that matters, for example "2%": within it arms are called equal.
    pub margin: f64,
    /// Share of samples that may be flawed or doubtful, by the word of `corecast-bench`, before the verdict is void.
    /// Default "20%".
    pub doubtful_max: f64,
    /// A, what is there today, and B, what is tried.
    pub arms: [Arm; 2],
}

/// See [`Plan::better`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// For costs and times.
    Lower,
    /// For rates.
    Higher,
}

/// Which arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// Of a pair of things.
    pub fn of<T>(self, both: &[T; 2]) -> &T {
        &both[self as usize]
    }

    /// The order of samples: A B B A A B B A ..., so that a machine that drifts does as much to one arm as to the other.
    pub fn at(position: usize) -> Self {
        if matches!(position % 4, 0 | 3) { Self::A } else { Self::B }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::A { "A" } else { "B" })
    }
}

/// Bytes of an experiment's file. The longest of ours has 1 KiB.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Arguments of `corecast-bench` that a scenario may not hold.
pub const DECIDED: [&str; 11] = [
    "--server",
    "--server-cores",
    "--preset",
    "--pid",
    "--url",
    "--redis",
    "--runs",
    "--duration",
    "--warm-up",
    "--no-floor",
    "--out",
];
/// A sample of an hour is no sample.
const SAMPLE_MAX: Duration = Duration::from_secs(3600);
const DISCARD_MAX: usize = 100;

const KEYS: [&str; 12] = [
    "title",
    "hypothesis",
    "metric",
    "better",
    "scenario",
    "pairs",
    "duration",
    "warm_up",
    "discard",
    "margin",
    "doubtful_max",
    "arm",
];

impl Plan {
    /// Reads the `text` of `file`.
    ///
    /// # Errors
    /// Every fault of it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Faults> {
        let mut reader = Reader::new(file, text);
        let plan = reader.document().and_then(|document| read(&mut reader, file, &document));
        reader.finish(plan)
    }

    /// Samples in all, the discarded ones included.
    pub fn samples(&self) -> usize {
        self.discard + 2 * self.pairs
    }
}

fn read(reader: &mut Reader<'_>, file: &Path, document: &Fields<'_>) -> Option<Plan> {
    reader.known(document, &KEYS);
    let sentence = |reader: &mut Reader<'_>, key, due: &str| {
        reader.required(document, key, |input| input.line(due).map(str::to_owned))
    };
    let title = sentence(reader, "title", "what is compared, in a few words");
    let hypothesis = sentence(reader, "hypothesis", "what is expected of arm B and why, in a sentence");
    let metric = sentence(reader, "metric", "a figure of corecast-bench, for example \"CPU per delivery\"");
    let better = reader.required(document, "better", |input| {
        input.one_of(&[("lower", Better::Lower), ("higher", Better::Higher)])
    });
    let scenario = reader.required(document, "scenario", |input| {
        let due = "arguments of corecast-bench, for example [\"fanout\", \"--clients\", \"1000\"]";
        let words: Vec<String> = input.list(due)?.into_iter().map(|word| word.into_owned()).collect();
        scenario(words).map_err(|sentence| sentence.map_or_else(|| input.wrong(due), Wrong::Sentence))
    });
    let pairs = reader.optional(document, "pairs", |input| input.count(PAIRS_MIN..=PAIRS_MAX));
    let millisecond = Duration::from_millis(1);
    let duration = reader.optional(document, "duration", |input| input.duration(millisecond..=SAMPLE_MAX));
    let warm_up = reader.optional(document, "warm_up", |input| input.duration(Duration::ZERO..=SAMPLE_MAX));
    let discard = reader.optional(document, "discard", |input| input.count(0..=DISCARD_MAX));
    let margin = reader.required(document, "margin", |input| {
        share(input.text(MARGIN_DUE)?).filter(|share| *share > 0.0).ok_or_else(|| input.wrong(MARGIN_DUE))
    });
    let doubtful_max = reader.optional(document, "doubtful_max", |input| {
        let due = "a share of the samples from \"0%\" to \"100%\"";
        share(input.text(due)?).ok_or_else(|| input.wrong(due))
    });
    let arms = reader.table(document, "arm", true).and_then(|arms| {
        reader.known(&arms, &["a", "b"]);
        let mut arm = |key| reader.table(&arms, key, true).and_then(|fields| Arm::read(reader, &fields));
        let (a, b) = (arm("a"), arm("b"));
        Some([a?, b?])
    });
    Some(Plan {
        name: file.file_stem()?.to_string_lossy().into_owned(),
        file: file.to_owned(),
        title: title?,
        hypothesis: hypothesis?,
        metric: metric?,
        better: better?,
        scenario: scenario?,
        pairs: pairs.unwrap_or(20),
        duration: duration.unwrap_or(Duration::from_secs(2)),
        warm_up: warm_up.unwrap_or(Duration::from_millis(500)),
        discard: discard.unwrap_or(2),
        margin: margin?,
        doubtful_max: doubtful_max.unwrap_or(0.2),
        arms: arms?,
    })
}

const MARGIN_DUE: &str = "the smallest difference that matters, above \"0%\", for example \"2%\"";

/// `words` again if a scenario stands first and nothing in them is the experiment's to decide; else why not, in a sentence
/// where there is more to say than what was due.
fn scenario(words: Vec<String>) -> Result<Vec<String>, Option<String>> {
    if words.first().is_none_or(|word| word.is_empty() || word.starts_with('-')) {
        return Err(None);
    }
    let name = |word: &'_ String| word.split('=').next().unwrap_or_default().to_owned();
    match words.iter().map(name).find(|word| DECIDED.contains(&word.as_str())) {
        Some(word) => Err(Some(format!(
            "found {word}, which the experiment decides: an arm has `server` (flags of corecast serve) and `cores`, the \
             file `duration` and `warm_up`"
        ))),
        None => Ok(words),
    }
}

/// `2%` or `0.5 %` as 0.02 or 0.005; up to 100 %.
fn share(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?.trim_end();
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent = number.parse::<f64>().ok().filter(|percent| is_plain && *percent <= 100.0)?;
    Some(percent / 100.0)
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
title = \"epoll beside io_uring\"
hypothesis = \"epoll costs more\"
metric = \"CPU per delivery\"
better = \"lower\"
scenario = [\"fanout\", \"--clients\", \"10\"]
margin = \"2%\"
[arm.a]
[arm.b]
server = [\"--driver\", \"epoll\"]
";

    fn parse(text: &str) -> Result<Plan, String> {
        Plan::parse(Path::new("x/driver.toml"), text).map_err(|faults| faults.to_string())
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err("the file must be refused")
    }

    #[test]
    fn what_a_file_leaves_out_has_a_default() {
        let plan = parse(GOOD).expect("a good file");
        assert_eq!((plan.name.as_str(), plan.pairs, plan.discard, plan.samples()), ("driver", 20, 2, 42));
        assert_eq!((plan.duration, plan.warm_up), (Duration::from_secs(2), Duration::from_millis(500)));
        assert_eq!((plan.margin, plan.doubtful_max, plan.better), (0.02, 0.2, Better::Lower));
        assert_eq!(plan.arms[1].server, ["--driver", "epoll"]);
    }

    #[test]
    fn samples_come_in_abba_order() {
        let order: String = (0..12).map(|position| Side::at(position).to_string()).collect();
        assert_eq!(order, "ABBAABBAABBA");
    }

    #[test]
    fn an_unknown_key_is_told_with_its_place_and_the_nearest_one() {
        assert_eq!(
            refused(&GOOD.replace("margin", "margim")),
            "x/driver.toml:1:1: margin: missing, and needed\n\
             x/driver.toml:6:1: margim: unknown key; did you mean \"margin\"?"
        );
        assert_eq!(
            refused(&format!("{GOOD}  sever = []\n")),
            "x/driver.toml:10:3: sever: unknown key in arm.b; did you mean \"server\"?"
        );
        assert_eq!(
            refused(&format!("{GOOD}[arm.third]\n")),
            "x/driver.toml:10:6: third: unknown key in arm; known here: a, b"
        );
    }

    #[test]
    fn all_faults_are_told_at_once_in_the_order_of_the_file() {
        let text = GOOD.replace("\"lower\"", "\"less\"").replace("\"2%\"", "2").replace("[arm.a]\n", "");
        assert_eq!(
            refused(&text),
            "x/driver.toml:4:10: better: found the string \"less\", due one of lower, higher\n\
             x/driver.toml:6:10: margin: found the integer 2, due the smallest difference that matters, above \"0%\", for \
             example \"2%\"\n\
             x/driver.toml:7:2: a: missing in arm, and needed"
        );
        assert!(refused("title = ").starts_with("x/driver.toml:1:9: not TOML: "), "{}", refused("title = "));
    }

    #[test]
    fn values_have_their_bounds() {
        for (line, due) in [
            ("pairs = 5", "from 6 to 200"),
            ("pairs = 201", "from 6 to 200"),
            ("duration = \"0s\"", "from 1ms to 1h"),
            ("warm_up = \"2\"", "with its unit"),
            ("discard = -1", "from 0 to 100"),
            ("doubtful_max = \"101%\"", "from \"0%\" to \"100%\""),
            ("doubtful_max = \"+1%\"", "from \"0%\" to \"100%\""),
        ] {
            let text = GOOD.replace("margin", &format!("{line}\nmargin"));
            assert!(refused(&text).contains(due), "{line}: {}", refused(&text));
        }
        for margin in ["0%", "-1%", "2", "%", "nan%", "inf%"] {
            let text = GOOD.replace("2%", margin);
            assert!(refused(&text).contains("above \"0%\""), "{margin}: {}", refused(&text));
        }
    }

    #[test]
    fn a_scenario_leaves_to_the_experiment_what_is_the_experiments() {
        for words in ["[]", "[\"--clients\", \"10\"]", "\"--clients\"", "[1]"] {
            let text = GOOD.replace("[\"fanout\", \"--clients\", \"10\"]", words);
            assert!(refused(&text).contains("due arguments of corecast-bench"), "{}", refused(&text));
        }
        for word in DECIDED {
            for word in [word.to_owned(), format!("{word}=x")] {
                let text = GOOD.replace("--clients", &word);
                assert!(refused(&text).contains("which the experiment decides"), "{}", refused(&text));
            }
        }
    }
}
