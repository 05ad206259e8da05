//! What operators write: the file, variables and flags, and the words in them.

use std::collections::BTreeMap;
use std::fmt::Display;

use shards::config::settings::SETTINGS;
use shards::config::{
    self, ConfigErrors, Deliver, File, Inputs, Loaded, Places, RedisTarget, Subscribe, Template,
};
use shards::request::Authority;
use shards::route::Routes;

/// A file is taken or refused with a place in it, and what `config show` prints of it is the same configuration.
pub(crate) fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match load_file(text) {
        Ok(loaded) => check_loaded(&loaded),
        Err(errors) => {
            check_errors(&errors);
            let lines = text.split('\n').count();
            for error in &errors.0 {
                if let config::Origin::File { line, column, .. } = &error.origin {
                    assert!((1..=lines).contains(line) && *column >= 1, "{error} is not in the file");
                }
            }
        }
    }
}

/// Lines of `NAME=VALUE` are variables, lines of `--setting=VALUE` flags.
pub(crate) fn variables(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut inputs = Inputs { node_id: NODE.to_owned(), ..Inputs::default() };
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match name.strip_prefix("--") {
            // The command line knows no others.
            Some(flag) if SETTINGS.iter().any(|setting| setting.name == flag) => {
                inputs.flags.push((flag.to_owned(), value.to_owned()));
            }
            Some("preset") => inputs.presets = Some(value.split(',').map(str::to_owned).collect()),
            Some(_) => {}
            None => drop(inputs.environment.insert(name.to_owned(), value.to_owned())),
        }
    }
    match config::load(&inputs) {
        Ok(loaded) => check_loaded(&loaded),
        Err(errors) => check_errors(&errors),
    }
}

/// Durations, sizes, templates, subscriptions, addresses: what is read is shown as it reads.
pub(crate) fn words(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(duration) = config::parse_duration(text) {
        let shown = config::duration_text(duration);
        assert_eq!(config::parse_duration(&shown), Some(duration), "{text:?} is shown as {shown:?}");
    }
    if let Some(bytes) = config::parse_size(text) {
        let shown = config::size_text(bytes);
        assert_eq!(config::parse_size(&shown), Some(bytes), "{text:?} is shown as {shown:?}");
    }
    for places in [Places::Request, Places::Channel] {
        if let Ok(template) = Template::parse(text, places) {
            assert_eq!(template.to_string(), text, "another text of a template");
            assert!(text.starts_with(template.prefix()) && text.ends_with(template.suffix()));
        }
    }
    check_word(text, Subscribe::parse(text).ok());
    check_word(text, Deliver::parse(text).ok());
    if let Ok(target) = text.parse::<RedisTarget>() {
        let shown = target.to_string();
        if target.password.is_none() {
            assert_eq!(shown.parse(), Ok(target), "{text:?} is shown as {shown:?}");
        } else {
            assert!(shown.contains(":***@"), "{shown:?} shows another password");
        }
    }
    if let Some(authority) = Authority::parse(text) {
        assert!(text.contains(authority.host) && !authority.host.is_empty(), "the host {:?}", authority.host);
        assert!(authority.has_host_of(&authority), "{text:?} is not itself");
    }
}

fn check_word<T: Display>(text: &str, read: Option<T>) {
    if let Some(read) = read {
        assert_eq!(read.to_string(), text, "another text of a word");
    }
}

fn check_loaded(loaded: &Loaded) {
    let shown = config::show(loaded);
    let _ = Routes::new(&loaded.config);
    match load_file(&shown) {
        Ok(again) => assert_eq!(again.config, loaded.config, "shown as\n{shown}"),
        // A password is not shown, so it must be given again.
        Err(errors) => assert!(shown.contains("***"), "{errors}\nof what is shown:\n{shown}"),
    }
}

fn check_errors(errors: &ConfigErrors) {
    assert!(!errors.0.is_empty(), "refused without an error");
    for error in &errors.0 {
        assert!(!error.message.is_empty(), "an error without a word");
    }
}

fn load_file(text: &str) -> Result<Loaded, ConfigErrors> {
    let file = Some(File { name: "fuzz.toml", text });
    let node_id = NODE.to_owned();
    config::load(&Inputs { file, environment: BTreeMap::new(), flags: Vec::new(), presets: None, node_id })
}

const NODE: &str = "00112233aabbccdd";
