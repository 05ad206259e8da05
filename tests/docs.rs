//! The documents say what the code does, where a program can compare the two.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use shards::close::CloseReason;

use crate::support::kernel::Confinement;
use crate::support::program;
use crate::support::scratch::Scratch;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Cells of the table whose header row begins with `header`, without their backquotes.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    text.lines()
        .skip_while(|line| !line.starts_with(header))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect()
}

#[test]
fn the_protocol_lists_every_close_reason_with_its_code_in_order() {
    let documented: Vec<(String, String)> = table(&read(&root().join("docs/PROTOCOL.md")), "| reason |")
        .into_iter()
        .map(|cells| (cells[0].clone(), cells[1].clone()))
        .collect();
    let built: Vec<(String, String)> = CloseReason::ALL
        .iter()
        .map(|reason| {
            (reason.name().to_owned(), reason.code().map_or("none".to_owned(), |code| code.to_string()))
        })
        .collect();
    assert_eq!(documented, built, "docs/PROTOCOL.md, section Close codes, differs from shards/src/close.rs");
}

#[test]
fn the_exit_codes_of_the_manual_are_those_of_the_help() {
    let documented: Vec<String> = table(&read(&root().join("docs/OPERATIONS.md")), "| code |")
        .into_iter()
        .map(|cells| cells[0].clone())
        .collect();
    let help = program::run(&["--help"]).stdout;
    let codes = help.split("Exit codes:").nth(1).expect("the help lists them");
    let told: Vec<&str> =
        codes.split_whitespace().filter(|word| word.bytes().all(|b| b.is_ascii_digit())).collect();
    assert_eq!(documented, told, "docs/OPERATIONS.md, section Exit codes, differs from corecast --help");
}

/// README, what is in docs/, and the client's.
fn documents() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut documents: Vec<PathBuf> =
        docs.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    documents.extend(["README.md", "clients/javascript/README.md"].map(|path| root().join(path)));
    documents
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    for document in documents() {
        for target in links(&read(&document)) {
            let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path = match path.is_empty() {
                true => document.clone(),
                false => document.parent().unwrap().join(path),
            };
            assert!(path.exists(), "{} links to {target}, which is not there", document.display());
            let has_heading = || read(&path).lines().any(|line| anchor(line).is_some_and(|a| a == heading));
            assert!(
                heading.is_empty() || has_heading(),
                "{} links to {target}, which has no such heading",
                document.display()
            );
        }
    }
}

/// Targets of `[text](target)` that are ours; Rust paths stand in examples of docstrings.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("::") && !target.contains("://") && !target.contains(' '))
        .map(str::to_owned)
        .collect()
}

/// How a link names the heading in `line`, as GitHub and others make it.
fn anchor(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    Some(kept.map(|c| if c == ' ' { '-' } else { c }).collect())
}

/// What `corecast help SUBCOMMAND` says, each asked once.
#[derive(Default)]
struct Helps(HashMap<String, String>);

impl Helps {
    fn of(&mut self, subcommand: &str) -> &str {
        self.0.entry(subcommand.to_owned()).or_insert_with(|| {
            let mut words = vec!["help"];
            words.extend(subcommand.split(' '));
            let help = program::run(&words);
            assert_eq!(help.code(), Some(0), "corecast {subcommand}: no such command");
            help.stdout
        })
    }

    /// Those of all subcommands.
    fn all(&mut self) -> String {
        let subcommands =
            ["serve", "publish", "subscribe", "clients", "report", "consume", "check-config", "doctor"];
        let nested = ["config show", "dead-letters list", "dead-letters replay"];
        let tune = ["list", "explain", "plan", "apply", "revert", "status", "experiment", "export"]
            .map(|name| format!("tune {name}"));
        let nested: Vec<&str> = nested.into_iter().chain(tune.iter().map(String::as_str)).collect();
        subcommands.iter().chain(&nested).map(|name| self.of(name).to_owned()).collect()
    }

    fn presets(&mut self) -> Vec<String> {
        let help = self.of("subscribe").split_whitespace().collect::<Vec<_>>().join(" ");
        let values = help.split("[possible values: ").nth(1).and_then(|rest| rest.split(']').next());
        values.expect("the help lists the presets").split(", ").map(str::to_owned).collect()
    }
}

/// Whether `text` holds `word`, and not only as a part of a longer one.
fn says(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// Text in fences that begin with "```" and `language`, and text in single backquotes outside of fences.
fn code(text: &str, language: &str) -> (Vec<String>, Vec<String>) {
    let (mut fenced, mut prose) = (Vec::new(), String::new());
    for (index, part) in text.split("```").enumerate() {
        let block = part.strip_prefix(language).and_then(|rest| rest.strip_prefix('\n'));
        match (index % 2, block) {
            (0, _) => prose.push_str(part),
            (_, Some(block)) => fenced.push(block.to_owned()),
            _ => {}
        }
    }
    (fenced, prose.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// The commands of a document as words: lines of a shell, and whatever stands in backquotes.
fn commands(text: &str) -> Vec<Vec<String>> {
    let (fenced, spans) = code(text, "sh");
    let lines = fenced.iter().flat_map(|block| {
        block
            .replace("\\\n", " ")
            .lines()
            .map(|line| line.split(" #").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    let simple = |line: String| -> Vec<Vec<String>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ends = |word: &&str| matches!(*word, "|" | "&" | "&&" | ";" | ">");
        words.split(ends).map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect()
    };
    lines.chain(spans).flat_map(simple).filter(|words| !words.is_empty()).collect()
}

/// The variables set before a command, and the rest of it.
fn variables(words: &[String]) -> (Vec<&str>, &[String]) {
    let is_name =
        |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let name = |word: &'_ String| word.find('=').filter(|at| *at > 0 && is_name(&word[..*at]));
    let set = words.iter().take_while(|word| name(word).is_some()).count();
    (words[..set].iter().filter_map(|word| word.split('=').next()).collect(), &words[set..])
}

/// The subcommand of a command line that runs this program, directly, by a script or as root.
fn subcommand(words: &[String]) -> Option<String> {
    let words = words.strip_prefix(&["sudo".to_owned()]).unwrap_or(words);
    let program = words.first()?;
    match (program.rsplit('/').next()?, words.get(1).map(String::as_str)) {
        ("start.sh", _) => Some("serve".to_owned()),
        ("corecast", Some(outer @ ("config" | "dead-letters" | "tune"))) => {
            Some(words.get(2).map_or(outer.to_owned(), |inner| format!("{outer} {inner}")))
        }
        ("corecast", Some(name)) if name.starts_with(|c: char| c.is_ascii_lowercase()) => {
            Some(name.to_owned())
        }
        _ => None,
    }
}

#[test]
fn commands_in_the_documents_have_the_flags_that_they_are_given() {
    let mut helps = Helps::default();
    let presets = helps.presets();
    let mut checked = 0;
    for document in documents() {
        for words in commands(&read(&document)) {
            let (_, words) = variables(&words);
            let Some(subcommand) = subcommand(words).filter(|name| !name.starts_with("help")) else {
                continue;
            };
            let at = format!("{}: {}", document.display(), words.join(" "));
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let name = flag.split('=').next().unwrap();
                assert!(says(helps.of(&subcommand), name), "{at}: {subcommand} has no {name}");
                checked += 1;
            }
            let named = words.iter().position(|word| word == "--preset").and_then(|at| words.get(at + 1));
            for name in named.iter().flat_map(|names| names.split(',')).filter(|name| *name != "NAME") {
                assert!(presets.iter().any(|preset| preset == name), "{at}: there is no preset {name}");
            }
        }
    }
    assert!(checked > 50, "the commands of the documents are not found any more: {checked} flags");
}

#[test]
fn flags_in_the_documents_are_those_of_some_command() {
    /// Of Docker Compose.
    const OTHERS: [&str; 1] = ["--profile"];
    let helps = Helps::default().all();
    for document in documents() {
        let (_, spans) = code(&read(&document), "sh");
        for span in spans.iter().filter(|span| span.starts_with("--")) {
            for flag in
                span.split([' ', '=', ',']).filter(|word| word.starts_with("--") && !OTHERS.contains(word))
            {
                assert!(says(&helps, flag), "{}: no command has {flag}", document.display());
            }
        }
    }
}

#[test]
fn variables_in_the_documents_are_read_by_the_program_or_a_script() {
    let mut read_by = Helps::default().all();
    for entry in std::fs::read_dir(root().join("scripts")).unwrap() {
        read_by.push_str(&read(&entry.unwrap().path()));
    }
    for document in documents() {
        let text = read(&document);
        let listed = table(&text, "| variable |").into_iter().map(|cells| cells[0].clone());
        let set = commands(&text).into_iter().flat_map(|words| {
            let (set, rest) = variables(&words);
            let is_ours =
                subcommand(rest).is_some() || rest.first().is_some_and(|p| p.starts_with("scripts/"));
            set.into_iter().filter(|_| is_ours).map(str::to_owned).collect::<Vec<_>>()
        });
        for name in listed.chain(set) {
            assert!(says(&read_by, &name), "{}: nothing reads the variable {name}", document.display());
        }
    }
}

#[test]
fn configurations_in_the_documents_are_good() {
    let scratch = Scratch::new();
    let mut checked = 0;
    for document in documents() {
        for text in code(&read(&document), "toml").0 {
            let file = scratch.write("documented.toml", &text);
            let mut command = program::command();
            command.arg("check-config").arg(&file);
            // Whoever follows the document has a password there.
            for line in text.lines() {
                let variable = line.strip_prefix("password_variable = ").map(|name| name.trim_matches('"'));
                command.envs(variable.map(|name| (name, "secret")));
            }
            let verdict = program::finish(command, Confinement::default());
            assert_eq!(verdict.code(), Some(0), "{}: {}\n{text}", document.display(), verdict.stderr);
            checked += 1;
        }
    }
    assert!(checked > 0, "the documents hold no configuration any more");
}

/// Of `corecast tune list`, as JSON.
#[track_caller]
fn tune_list(args: &[&str]) -> Vec<serde_json::Value> {
    let listed = program::run(&[&["tune", "list", "--format", "json"], args].concat());
    let json: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    json.as_array().expect("a list").clone()
}

#[test]
fn the_page_on_tuning_names_what_the_program_sets_and_refuses() {
    let page = read(&root().join("docs/TUNING.md"));
    let first = |cells: Vec<String>| cells[0].clone();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let profiles = tune_list(&[]);
    let told: Vec<String> = table(&page, "| profile |").into_iter().map(first).collect();
    assert_eq!(told, profiles.iter().map(|profile| text(&profile["name"])).collect::<Vec<_>>());
    for (cells, profile) in table(&page, "| profile |").iter().zip(&profiles) {
        assert_eq!(cells[1].replace(',', ""), profile["connections"].to_string(), "{}", cells[0]);
    }

    let users = |name: &str| {
        let uses = |profile: &&serde_json::Value| {
            profile["knobs"].as_array().expect("a list").iter().any(|knob| knob["name"] == name)
        };
        let users: Vec<_> = profiles.iter().filter(uses).map(|profile| text(&profile["name"])).collect();
        if users.len() == profiles.len() { "all".to_owned() } else { users.join(", ") }
    };
    let knob =
        |knob: &serde_json::Value| [text(&knob["name"]), text(&knob["scope"]), users(&text(&knob["name"]))];
    let built: Vec<_> = tune_list(&["--knobs"]).iter().map(knob).collect();
    let told: Vec<_> =
        table(&page, "| knob |").into_iter().map(|cells| [0, 1, 2].map(|at| cells[at].clone())).collect();
    assert_eq!(told, built);

    let refused: Vec<_> = tune_list(&["--refused"]).iter().map(|refused| text(&refused["name"])).collect();
    assert_eq!(table(&page, "| refused |").into_iter().map(first).collect::<Vec<_>>(), refused);
}

#[test]
fn the_profile_in_the_page_on_tuning_is_one() {
    let scratch = Scratch::new();
    let profiles = code(&read(&root().join("docs/TUNING.md")), "toml profile").0;
    assert_eq!(profiles.len(), 1);
    let file = scratch.write("documented.toml", &profiles[0]);
    let planned = program::run(&["tune", "plan", "--all", "--profile-file", &file.to_string_lossy()]);
    assert!(planned.stdout.contains("\nvm.min_free_kbytes "), "{planned:?}");
}

#[test]
fn each_preset_has_its_line_with_its_port_and_its_page() {
    let lines = table(&read(&root().join("README.md")), "| preset |");
    let documented: Vec<(String, String)> =
        lines.into_iter().map(|cells| (cells[0].clone(), cells[1].clone())).collect();
    let told = Helps::default().presets().into_iter().map(|preset| {
        let page = root().join(format!("docs/coming-from-{preset}.md"));
        assert!(page.exists(), "{} is not there", page.display());
        let shown = program::run(&["config", "show", "--preset", &preset]).stdout;
        let listen =
            shown.lines().find(|line| line.starts_with("listen = ")).expect("a preset has an address");
        let port: String =
            listen.chars().skip_while(|c| *c != ':').skip(1).take_while(char::is_ascii_digit).collect();
        (preset, port)
    });
    assert_eq!(documented, told.collect::<Vec<_>>(), "README.md, the table of presets");
}
