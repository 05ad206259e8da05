//! `corecast tune status`: what is changed and not restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use host::Root;
use serde_json::{Value, json};

use crate::output::print;
use crate::tune::columns::columns;
use crate::tune::explain::document;
use crate::tune::journal::Content;
use crate::tune::place::{Place, journal_folder};
use crate::tune::transaction::journal_failure;

/// Prints what the journal at `path`, or every journal in the usual place, holds.
///
/// # Errors
/// 77 or 1 where one can't be read.
pub fn run(root: &Root, path: Option<&Path>, is_json: bool) -> anyhow::Result<ExitCode> {
    let boot_id = Place::open(root.clone(), None)?.identity()?.boot_id;
    let paths = match path {
        Some(path) => vec![path.to_owned()],
        None => journals(root),
    };
    let mut journals = Vec::new();
    for path in paths {
        if let Some(content) = Content::read(&path).map_err(journal_failure)? {
            journals.push((path, content));
        }
    }
    print(&match is_json {
        true => document(&Value::Array(
            journals.iter().map(|(path, content)| journal_json(path, content, &boot_id)).collect(),
        )),
        false => text(&journals, &boot_id),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Those of the usual place, in order.
fn journals(root: &Root) -> Vec<PathBuf> {
    let entries = fs::read_dir(journal_folder(root)).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths
}

/// Whether its changes were lost with a restart of the kernel.
fn is_of_another_boot(content: &Content, boot_id: &str) -> bool {
    content.identity.as_ref().is_some_and(|identity| identity.boot_id != boot_id)
}

fn text(journals: &[(PathBuf, Content)], boot_id: &str) -> String {
    let mut text = String::new();
    for (path, content) in journals {
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
        if is_of_another_boot(content, boot_id) {
            text +=
                &format!("{}: of an earlier start of the kernel; nothing is left of it\n", path.display());
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

fn journal_json(path: &Path, content: &Content, boot_id: &str) -> Value {
    let changes = content.outstanding().map(|change| {
        json!({
            "knob": change.target, "old": change.old, "set": change.new, "found": change.found, "by": change.by,
            "time": change.time,
        })
    });
    json!({
        "journal": path.display().to_string(),
        "namespace_inode": content.identity.as_ref().map(|identity| identity.namespace_inode),
        "is_of_another_boot": is_of_another_boot(content, boot_id),
        "outstanding": changes.collect::<Vec<_>>(),
        "corrupted_lines": content.corrupted,
    })
}
