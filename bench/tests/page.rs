//! `corecast-bench page` as people run it: files in, one document out, and what it says about files that are none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}"));
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn page(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_corecast-bench")).arg("page").args(arguments).output().unwrap()
}

/// The committed run of the table.
fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runs/2026-11-21-6.18.44-fc-v595/table-061036.json")
}

#[test]
fn a_page_stands_beside_its_raw_results_and_says_where() {
    let file = folder("beside").join("table-061036.json");
    fs::copy(table(), &file).unwrap();
    let output = page(&[&file]);
    assert!(output.status.success(), "{output:?}");
    let written = file.with_extension("html");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), written.to_str().unwrap());
    let document = fs::read_to_string(written).unwrap();
    assert!(document.starts_with("<!DOCTYPE html>") && document.contains("6.18.44-fc-v595"));
    let run: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    for figure in run["table"].as_array().unwrap() {
        assert!(document.contains(figure["name"].as_str().unwrap()), "{}", figure["name"]);
    }
    for outcome in run["outcomes"].as_array().unwrap() {
        assert!(document.contains(outcome["title"].as_str().unwrap()), "{}", outcome["title"]);
    }
}

#[test]
fn several_runs_are_one_page_where_it_is_wanted() {
    let out = folder("several").join("report.html");
    let output = page(&[&table(), &table(), Path::new("--out"), &out]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(out).unwrap().matches("<article>").count(), 2);
}

#[test]
fn files_that_are_no_raw_results_are_named_with_what_was_due() {
    let folder = folder("foreign");
    let broken = [
        ("cut.json", r#"{"outcomes": [{"title": "x""#, "EOF while parsing"),
        ("other.json", r#"{"name": "corecast"}"#, "missing field `outcomes`"),
        ("page.json", "<!DOCTYPE html>", "expected value at line 1"),
    ];
    for (name, text, wrong) in broken {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        let output = page(&[&table(), &file, Path::new("--out"), &folder.join("never.html")]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for due in [file.to_str().unwrap(), wrong, "the raw results of a run were due"] {
            assert!(said.contains(due), "{due}: {said}");
        }
    }
    let output = page(&[&folder.join("nowhere.json")]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere.json: No such file"));
    assert!(!folder.join("never.html").exists(), "nothing is written of half of what was asked for");
}

#[test]
fn a_page_never_overwrites_what_it_is_made_of() {
    let file = folder("itself").join("results.html");
    fs::copy(table(), &file).unwrap();
    let output = page(&[&file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("name another file with --out"));
    assert_eq!(fs::read(file).unwrap(), fs::read(table()).unwrap());
}

#[test]
fn a_page_of_nothing_is_a_question_of_usage() {
    assert_eq!(page(&[]).status.code(), Some(2));
}

#[test]
fn a_table_has_its_page_even_if_nothing_could_be_measured() {
    let folder = folder("table");
    let output = Command::new(env!("CARGO_BIN_EXE_corecast-bench"))
        .args(["table", "--server", "no-such-server {port}", "--publish", "http", "--runs", "1", "--out"])
        .arg(&folder)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let written = |extension: &str| {
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect::<Vec<_>>()
    };
    let (pages, results) = (written("html"), written("json"));
    assert_eq!((pages.len(), results.len()), (1, 1), "{output:?}");
    assert_eq!(pages[0].file_stem(), results[0].file_stem());
    let document = fs::read_to_string(&pages[0]).unwrap();
    assert!(document.contains("Failed: ") && document.contains("? not measured"), "{document}");
}
