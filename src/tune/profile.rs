//! Profiles: which knobs serve which load. Those of `tuning/` are built in; a file of one's own has the same form.

use std::path::Path;

use serde::Deserialize;

use crate::tune::knob::{Knob, KnobError, KnobText};

/// A load, and the knobs that it needs.
#[derive(Debug)]
pub struct Profile {
    /// By which it is asked for.
    pub name: String,
    /// One line.
    pub title: String,
    /// Connections, unless somebody says otherwise.
    pub connections: u64,
    /// What matters for this load and is no knob.
    pub note: Option<String>,
    /// In the order in which they are set.
    pub knobs: Vec<Knob>,
}

/// A knob that people recommend to each other, and that no profile sets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Its name, or what people call it.
    pub name: String,
    /// What they set it to.
    pub advice: String,
    /// Why not.
    pub reason: String,
    /// When after all, or what does what they hope for.
    pub instead: String,
}

/// Why a file holds no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is no TOML of this form.
    #[error("{at}: {error}")]
    Form {
        /// Which file.
        at: String,
        /// With line and column.
        error: toml::de::Error,
    },
    /// One of its knobs is none.
    #[error("{at}: {error}")]
    Knob {
        /// Which file.
        at: String,
        /// What is wrong.
        error: KnobError,
    },
    /// It uses a knob that is not built in.
    #[error(
        "{at}: knobs names {name:?}, which is not built in: `corecast tune list --knobs` has those that are; describe \
             others in a [[knob]]"
    )]
    UnknownKnob {
        /// Which file.
        at: String,
        /// As given.
        name: String,
    },
    /// A knob twice.
    #[error("{at}: {name} is there twice: leave one of them")]
    Repeated {
        /// Which file.
        at: String,
        /// Which knob.
        name: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileText {
    title: String,
    connections: u64,
    note: Option<String>,
    /// Built-in ones.
    #[serde(default)]
    knobs: Vec<String>,
    #[serde(default)]
    knob: Vec<KnobText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnobsText {
    knob: Vec<KnobText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusedText {
    refused: Vec<Refused>,
}

/// Name and text of each profile that is built in.
const PROFILES: [(&str, &str); 5] = [
    ("10k", include_str!("../../tuning/10k.toml")),
    ("100k", include_str!("../../tuning/100k.toml")),
    ("1m", include_str!("../../tuning/1m.toml")),
    ("low-latency", include_str!("../../tuning/low-latency.toml")),
    ("load-generator", include_str!("../../tuning/load-generator.toml")),
];
const KNOBS: &str = include_str!("../../tuning/knobs.toml");
const REFUSED: &str = include_str!("../../tuning/refused.toml");

/// The names of the profiles that are built in.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// Every knob that is built in.
///
/// # Errors
/// None but in a binary whose own files are wrong, which a test excludes.
pub fn built_in_knobs() -> Result<Vec<Knob>, ProfileError> {
    let at = "tuning/knobs.toml";
    let texts: KnobsText = read(at, KNOBS)?;
    texts.knob.into_iter().map(|text| text.parse().map_err(|error| knob_error(at, error))).collect()
}

/// What no profile sets, and why.
///
/// # Errors
/// As [`built_in_knobs`].
pub fn refused() -> Result<Vec<Refused>, ProfileError> {
    read::<RefusedText>("tuning/refused.toml", REFUSED).map(|text| text.refused)
}

impl Profile {
    /// The built-in one of this name; `None` where there is none.
    ///
    /// # Errors
    /// As [`built_in_knobs`].
    pub fn built_in(name: &str) -> Result<Option<Self>, ProfileError> {
        let found = PROFILES.iter().find(|(known, _)| *known == name);
        found.map(|(name, text)| Self::parse(name, &format!("tuning/{name}.toml"), text)).transpose()
    }

    /// The one that `text`, found at `path`, describes; it is called as the file is.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn of_file(path: &Path, text: &str) -> Result<Self, ProfileError> {
        let name = path.file_stem().map_or("profile".into(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&name, &path.display().to_string(), text)
    }

    fn parse(name: &str, at: &str, text: &str) -> Result<Self, ProfileError> {
        let ProfileText { title, connections, note, knobs: used, knob } = read(at, text)?;
        let built_in = built_in_knobs()?;
        let find = |name: String| {
            let found = built_in.iter().find(|knob| knob.name.to_string() == name).cloned();
            found.ok_or_else(|| ProfileError::UnknownKnob { at: at.to_owned(), name })
        };
        let mut knobs = used.into_iter().map(find).collect::<Result<Vec<_>, _>>()?;
        for text in knob {
            knobs.push(text.parse().map_err(|error| knob_error(at, error))?);
        }
        if let Some(name) = repeated(&knobs) {
            return Err(ProfileError::Repeated { at: at.to_owned(), name });
        }
        Ok(Self { name: name.to_owned(), title, connections, note, knobs })
    }
}

fn repeated(knobs: &[Knob]) -> Option<String> {
    let is_repeated =
        |(index, knob): &(usize, &Knob)| knobs[..*index].iter().any(|other| other.name == knob.name);
    knobs.iter().enumerate().find(is_repeated).map(|(_, knob)| knob.name.to_string())
}

fn read<T: for<'t> Deserialize<'t>>(at: &str, text: &str) -> Result<T, ProfileError> {
    toml::from_str(text).map_err(|error| ProfileError::Form { at: at.to_owned(), error })
}

fn knob_error(at: &str, error: KnobError) -> ProfileError {
    ProfileError::Knob { at: at.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_is_built_in_can_be_read_and_every_knob_is_used() {
        let knobs = built_in_knobs().expect("tuning/knobs.toml");
        assert_eq!(repeated(&knobs), None);
        let profiles: Vec<_> =
            names().map(|name| Profile::built_in(name).expect(name).expect("it is built in")).collect();
        for knob in &knobs {
            let is_used =
                profiles.iter().flat_map(|profile| &profile.knobs).any(|used| used.name == knob.name);
            assert!(is_used, "{} is in no profile", knob.name);
        }
    }

    #[test]
    fn every_profile_of_the_folder_is_built_in() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning")).expect("tuning/");
        let paths = folder.map(|entry| entry.expect("an entry").path());
        let is_profile = |path: &std::path::PathBuf| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            path.extension().is_some_and(|end| end == "toml") && text.contains("\nconnections = ")
        };
        let profiles = paths.filter(is_profile).map(|path| path.file_stem().map(|stem| stem.to_os_string()));
        let mut found: Vec<_> = profiles.flatten().filter_map(|stem| stem.into_string().ok()).collect();
        let mut due: Vec<_> = names().map(str::to_owned).collect();
        found.sort();
        due.sort();
        assert_eq!(found, due, "files of tuning/");
    }

    #[test]
    fn no_profile_sets_what_is_refused() {
        let refused = refused().expect("tuning/refused.toml");
        assert!(refused.iter().any(|refused| refused.name == "net.ipv4.tcp_tw_recycle"));
        for name in names() {
            let profile = Profile::built_in(name).expect(name).expect("it is built in");
            for knob in profile.knobs {
                let is_refused = refused.iter().any(|refused| refused.name == knob.name.to_string());
                assert!(!is_refused, "{name} sets {}", knob.name);
            }
        }
    }

    #[test]
    fn a_file_of_ones_own_may_use_what_is_built_in_and_add_to_it() {
        let parse = |text: &str| Profile::of_file(Path::new("/etc/corecast/mine.toml"), text);
        let own = "[[knob]]\nname = 'vm.swappiness'\nvalue = '1'\nrule = 'exact'\nscope = 'host'\nreason = 'r'\nrisk = 'k'\nevidence = 'e'\n";
        let head = "title = 't'\nconnections = 5\nknobs = ['net.core.somaxconn']\n";
        let profile = parse(&format!("{head}{own}")).expect("a profile");
        let names: Vec<_> = profile.knobs.iter().map(|knob| knob.name.to_string()).collect();
        assert_eq!(
            (profile.name.as_str(), names.join(" ").as_str()),
            ("mine", "net.core.somaxconn vm.swappiness")
        );

        let refused = |text: &str| parse(text).expect_err(text).to_string();
        assert!(
            refused(&head.replace("somaxconn", "somax"))
                .contains("\"net.core.somax\", which is not built in")
        );
        assert!(refused(&format!("{head}{own}{own}")).contains("vm.swappiness is there twice"));
        let unknown = refused(&format!("colour = 1\n{head}"));
        assert!(unknown.contains("mine.toml") && unknown.contains("line 1"), "{unknown}");
    }
}
