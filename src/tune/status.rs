//! `corecast tune status`: what is changed and not restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use host::Root;
use serde_json::{Value, json};

use crate::output::print;
use crate::tune::columns::columns;
use crate::tune::explain::document;
use crate::tune::identity::Kinship;
use crate::tune::journal::Content;
use crate::tune::place::{Place, journal_folder};
use crate::tune::transaction::journal_failure;

/// Prints what the journal at `path`, or every journal in the usual place, holds; where `is_only_here`, of the namespace of
/// `place` alone.
///
/// # Errors
/// 77 or 1 where one can't be read.
pub fn run(
    place: &Place,
    is_only_here: bool,
    path: Option<&Path>,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let (root, here) = (place.root(), place.identity()?);
    // What is too damaged to say whose it is, is nobody else's either.
    let is_of = |content: &Content| {
        let kinship = content.identity.as_ref().map(|identity| identity.kinship(&here));
        kinship.is_none_or(|kinship| matches!(kinship, Kinship::Same | Kinship::Gone))
    };
    let paths = match path {
        Some(path) => vec![path.to_owned()],
        None => journals(root),
    };
    let mut journals = Vec::new();
    for path in paths {
        let content = Content::read(&path).map_err(journal_failure)?;
        if let Some(content) = content.filter(|content| !is_only_here || is_of(content)) {
            let lost = Lost::of(&content, &here.boot_id, root);
            journals.push(Found { path, content, lost });
        }
    }
    print(&match is_json {
        true => document(&Value::Array(journals.iter().map(journal_json).collect())),
        false => text(&journals),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A journal, and whether anything is left of what it says.
struct Found {
    path: PathBuf,
    content: Content,
    lost: Option<Lost>,
}

/// Those of the usual place, in order.
fn journals(root: &Root) -> Vec<PathBuf> {
    let entries = fs::read_dir(journal_folder(root)).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths
}

/// Why nothing is left of what a journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// The kernel was started again.
    Boot,
    /// Its network namespace is gone.
    Namespace,
}

impl Lost {
    fn of(content: &Content, boot_id: &str, root: &Root) -> Option<Self> {
        let identity = content.identity.as_ref()?;
        if identity.boot_id != boot_id {
            return Some(Self::Boot);
        }
        (content.outstanding().next().is_some() && identity.is_gone(root)).then_some(Self::Namespace)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Boot => "of an earlier start of the kernel; nothing is left of it",
            Self::Namespace => "its network namespace is gone; nothing is left of it",
        }
    }
}

fn text(journals: &[Found]) -> String {
    let mut text = String::new();
    for Found { path, content, lost } in journals {
        let rows: Vec<_> = content
            .outstanding()
            .map(|change| {
                let now = change.found.as_ref().unwrap_or(&change.new);
                let values = format!("{} -> {now}", change.old);
                vec![format!("  {}", change.target), values, change.by.clone(), change.time.clone()]
            })
            .collect();
        let namespace =
            content.identity.as_ref().map_or("?".to_owned(), |identity| identity.namespace_inode.to_string());
        if let Some(lost) = lost {
            text += &format!("{}: {}\n", path.display(), lost.words());
        } else if !rows.is_empty() {
            text += &format!(
                "{} (network namespace {namespace}), newest first:\n{}",
                path.display(),
                columns(&rows)
            );
        }
        if let Some(line) = content.corrupted.first() {
            text += &format!("{}: line {line} can't be read; corecast tune revert --force\n", path.display());
        }
    }
    match text.is_empty() {
        true => "Nothing is changed.\n".to_owned(),
        false => text,
    }
}

fn journal_json(Found { path, content, lost }: &Found) -> Value {
    let changes = content.outstanding().map(|change| {
        json!({
            "knob": change.target, "old": change.old, "set": change.new, "found": change.found, "by": change.by,
            "time": change.time,
        })
    });
    json!({
        "journal": path.display().to_string(),
        "namespace_inode": content.identity.as_ref().map(|identity| identity.namespace_inode),
        "is_of_another_boot": *lost == Some(Lost::Boot),
        "is_namespace_gone": *lost == Some(Lost::Namespace),
        "outstanding": changes.collect::<Vec<_>>(),
        "corrupted_lines": content.corrupted,
    })
}
