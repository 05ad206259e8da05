//! Every file of the corpus, through the body of its target.

use std::fs;
use std::path::{Path, PathBuf};

use crate::TARGETS;

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = listed.map(|entry| entry.expect("an entry of a folder").path()).collect();
    paths.sort();
    paths
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Names of the entries of a folder, without what is behind a point.
fn stems(folder: &str) -> Vec<String> {
    let stem = |path: PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    entries(&here(folder)).into_iter().map(stem).collect()
}

#[test]
fn every_input_of_the_corpus_keeps_what_its_parser_promises() {
    let mut failed = Vec::new();
    for (name, body) in TARGETS {
        let inputs = entries(&here("corpus").join(name));
        assert!(!inputs.is_empty(), "corpus/{name} is empty");
        for path in inputs {
            let input = fs::read(&path).expect("an input");
            let had = std::panic::catch_unwind(|| body(&input));
            if had.is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "these inputs break a promise, as said above: {failed:#?}");
}

#[test]
fn every_target_has_a_corpus_and_a_program_and_nothing_else_has() {
    let mut due: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    due.sort();
    assert_eq!(stems("corpus"), due, "folders of corpus/");
    assert_eq!(stems("libfuzzer/targets"), due, "files of libfuzzer/targets/");
    let manifest = fs::read_to_string(here("libfuzzer/Cargo.toml")).expect("a manifest");
    for name in &due {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in libfuzzer/Cargo.toml");
        let program = fs::read_to_string(here(&format!("libfuzzer/targets/{name}.rs"))).expect("a program");
        assert!(
            program.contains(&format!("fuzz::run(\"{name}\", input)")),
            "libfuzzer/targets/{name}.rs runs another"
        );
    }
}

#[test]
fn the_corpus_stays_small() {
    for (name, _) in TARGETS {
        let inputs = entries(&here("corpus").join(name));
        assert!(inputs.len() <= INPUTS_MAX, "{} files in corpus/{name}: minimise it", inputs.len());
        for path in inputs {
            let bytes = fs::metadata(&path).expect("a file").len();
            assert!(bytes <= INPUT_BYTES_MAX, "{} has {bytes} bytes", path.display());
        }
    }
}

const INPUTS_MAX: usize = 120;
const INPUT_BYTES_MAX: u64 = 4096;
