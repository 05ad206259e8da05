//! The documents say what the code does, where a program can compare the two.

use std::path::{Path, PathBuf};

use shards::close::CloseReason;

use crate::support::program;

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

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    documents.extend(
        docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    for document in documents {
        for target in links(&read(&document)) {
            let path: PathBuf = document.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(path.exists(), "{} links to {target}, which is not there", document.display());
        }
    }
}

/// Targets of `[text](target)` that are files of ours; Rust paths stand in examples of docstrings.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| {
            !target.contains("::")
                && !target.contains("://")
                && !target.starts_with('#')
                && !target.contains(' ')
        })
        .map(str::to_owned)
        .collect()
}
