use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::tune::scratch::Scratch;

const KNOBS: [&str; 3] = ["net.core.somaxconn", "net.ipv4.tcp_rmem", "fs.nr_open"];

fn identity() -> Identity {
    Identity { boot_id: "boot".to_owned(), namespace_inode: 7, namespace_cookie: None }
}

fn target(name: &str) -> Target {
    name.parse().expect("a name")
}

/// A root with every knob at `before`.
fn root(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    for knob in KNOBS {
        scratch.sysctl(&knob.replace('.', "/"), "before");
    }
    scratch
}

#[track_caller]
fn values(scratch: &Scratch) -> [String; 3] {
    KNOBS.map(|knob| target(knob).read(scratch.root()).expect("it is there"))
}

#[track_caller]
fn begin(scratch: &Scratch) -> Journal {
    Journal::begin(&scratch.path("state/journal.jsonl"), identity()).expect("a journal")
}

#[track_caller]
fn revert(scratch: &Scratch, is_forced: bool) -> Vec<Outcome> {
    let mut journal =
        Journal::open(&scratch.path("state/journal.jsonl")).expect("it opens").expect("it is there");
    let Reverted { outcomes, noted } = journal.revert(scratch.root(), Part::Whole, is_forced);
    noted.expect("it is written");
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn what_was_set_is_restored_newest_first_and_only_once() {
    let scratch = root("journal-order");
    let mut journal = begin(&scratch);
    for (knob, value) in [(KNOBS[0], "1"), (KNOBS[1], "1 2 3"), (KNOBS[0], "2")] {
        journal.set(scratch.root(), "test", &target(knob), value).expect("it is taken");
    }
    drop(journal);
    assert_eq!(values(&scratch), ["2", "1 2 3", "before"]);

    let mut journal =
        Journal::open(&scratch.path("state/journal.jsonl")).expect("it opens").expect("it is there");
    let outcomes = journal.revert(scratch.root(), Part::Whole, false).outcomes;
    let told: Vec<_> =
        outcomes.iter().map(|(change, _)| (change.target.to_string(), change.old.as_str())).collect();
    assert_eq!(
        told,
        [(KNOBS[0].to_owned(), "1"), (KNOBS[1].to_owned(), "before"), (KNOBS[0].to_owned(), "before")]
    );
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Restored), "{outcomes:?}");
    drop(journal);
    assert_eq!(values(&scratch), ["before"; 3]);
    assert_eq!(revert(&scratch, false), []);
}

#[test]
fn a_second_set_is_added_to_what_is_outstanding_and_a_finished_journal_is_begun_anew() {
    let scratch = root("journal-continued");
    begin(&scratch).set(scratch.root(), "first", &target(KNOBS[0]), "1").expect("it is taken");
    begin(&scratch).set(scratch.root(), "second", &target(KNOBS[0]), "2").expect("it is taken");
    let by: Vec<_> = begin(&scratch).content().outstanding().map(|change| change.by.clone()).collect();
    assert_eq!(by, ["second", "first"]);
    assert_eq!(revert(&scratch, false), [Outcome::Restored, Outcome::Restored]);
    assert_eq!(values(&scratch), ["before"; 3]);
    assert!(begin(&scratch).content().changes.is_empty());
}

#[test]
fn a_value_that_somebody_else_changed_stays_unless_forced() {
    let scratch = root("journal-alien");
    let mut journal = begin(&scratch);
    for knob in KNOBS {
        journal.set(scratch.root(), "test", &target(knob), "ours").expect("it is taken");
    }
    drop(journal);
    scratch.sysctl("net/ipv4/tcp_rmem", "theirs");
    scratch.sysctl("fs/nr_open", "before");
    let alien = Outcome::Alien { now: "theirs".to_owned() };
    assert_eq!(revert(&scratch, false), [Outcome::AlreadyRestored, alien.clone(), Outcome::Restored]);
    assert_eq!(values(&scratch), ["before", "theirs", "before"]);
    assert_eq!(revert(&scratch, false), [alien], "it is still told");
    assert_eq!(revert(&scratch, true), [Outcome::Restored]);
    assert_eq!(values(&scratch), ["before"; 3]);
}

#[test]
fn what_can_not_be_noted_down_is_not_set() {
    let scratch = root("journal-refused");
    let mut journal = begin(&scratch);
    let absent =
        journal.set(scratch.root(), "test", &target("net.core.absent"), "1").expect_err("it is not there");
    assert!(matches!(absent, SetError::Target(error) if error.is_absence()));
    assert!(journal.content().changes.is_empty());
    // Opened for reading only, as on a disk that takes no more.
    journal.file = File::open(&journal.path).expect("it is there");
    journal.set(scratch.root(), "test", &target(KNOBS[0]), "1").expect_err("it can't be written");
    assert_eq!(values(&scratch), ["before"; 3]);
}

#[test]
fn a_journal_that_takes_no_line_keeps_no_value_from_being_restored() {
    let scratch = root("journal-full");
    let mut journal = begin(&scratch);
    for knob in KNOBS {
        journal.set(scratch.root(), "test", &target(knob), "ours").expect("it is taken");
    }
    journal.file = File::open(&journal.path).expect("it is there");
    let Reverted { outcomes, noted } = journal.revert(scratch.root(), Part::Whole, false);
    assert!(matches!(noted, Err(JournalError::File { verb: "write", .. })), "{noted:?}");
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Restored), "{outcomes:?}");
    assert_eq!(values(&scratch), ["before"; 3]);
    drop(journal);
    assert_eq!(revert(&scratch, false), vec![Outcome::AlreadyRestored; 3]);
}

#[test]
fn killed_before_it_knew_how_the_kernel_spells_a_value_it_is_still_ours() {
    let scratch = root("journal-spelling");
    begin(&scratch).set(scratch.root(), "test", &target(KNOBS[0]), "f").expect("it is taken");
    let path = scratch.path("state/journal.jsonl");
    let text = fs::read_to_string(&path).expect("it is text");
    let kept: Vec<&str> = text.lines().filter(|line| !line.contains("\"done\"")).collect();
    fs::write(&path, kept.join("\n") + "\n").expect("it is writable");
    scratch.sysctl("net/core/somaxconn", "00000000,0000000f");
    assert_eq!(revert(&scratch, false), [Outcome::Restored]);
}

#[test]
fn a_part_leaves_the_rest_as_it_is() {
    let scratch = root("journal-part");
    let mut journal = begin(&scratch);
    for (by, knob) in [("100k", KNOBS[0]), ("experiment thp", KNOBS[1]), ("1m", KNOBS[2])] {
        journal.set(scratch.root(), by, &target(knob), "ours").expect("it is taken");
    }
    assert_eq!(journal.revert(scratch.root(), Part::OfExperiments, false).outcomes.len(), 1);
    assert_eq!(values(&scratch), ["ours", "before", "ours"]);
    assert_eq!(journal.revert(scratch.root(), Part::After(1), false).outcomes.len(), 1);
    assert_eq!(values(&scratch), ["ours", "before", "before"]);
}

#[test]
fn one_process_at_a_time_has_it() {
    let scratch = root("journal-lock");
    let held = begin(&scratch);
    let path = scratch.path("state/journal.jsonl");
    assert!(matches!(Journal::begin(&path, identity()), Err(JournalError::Locked(_))));
    assert!(matches!(Journal::open(&path), Err(JournalError::Locked(_))));
    assert!(Content::read(&path).expect("reading takes no lock").is_some());
    drop(held);
    assert!(Journal::open(&path).expect("it is free").is_some());
}

#[test]
fn another_namespace_does_not_continue_it_and_another_boot_begins_anew() {
    let scratch = root("journal-identity");
    let path = scratch.path("state/journal.jsonl");
    begin(&scratch).set(scratch.root(), "test", &target(KNOBS[0]), "1").expect("it is taken");
    let namespace = Identity { namespace_inode: 8, ..identity() };
    let error = Journal::begin(&path, namespace.clone()).expect_err("its changes are elsewhere");
    assert!(matches!(error, JournalError::OtherNamespace { theirs: 7, ours: 8, .. }), "{error}");
    let named = Identity { namespace_cookie: Some(10), ..identity() };
    assert_eq!(Journal::begin(&path, named.clone()).expect("it may be the same").content().changes.len(), 1);
    let boot = Identity { boot_id: "another".to_owned(), ..identity() };
    let journal = Journal::begin(&path, boot.clone()).expect("nothing is left to undo");
    assert_eq!((journal.content().identity.as_ref(), journal.content().changes.len()), (Some(&boot), 0));
}

#[test]
fn a_namespace_with_the_number_of_one_that_is_gone_is_another_one() {
    let scratch = root("journal-gone");
    let path = scratch.path("state/journal.jsonl");
    let gone = Identity { namespace_cookie: Some(10), ..identity() };
    let mut journal = Journal::begin(&path, gone).expect("a journal");
    journal.set(scratch.root(), "test", &target(KNOBS[0]), "1").expect("it is taken");
    drop(journal);
    let successor = Identity { namespace_cookie: Some(15), ..identity() };
    let content = Content::read(&path).expect("it is read").expect("it is there");
    assert_eq!(content.identity.map(|theirs| theirs.kinship(&successor)), Some(Kinship::Gone));
    assert!(Journal::begin(&path, successor).expect("nothing is left to undo").content().changes.is_empty());
}

#[test]
fn a_journal_of_before_there_were_cookies_is_followed() {
    let scratch = root("journal-old");
    begin(&scratch).set(scratch.root(), "test", &target(KNOBS[0]), "1").expect("it is taken");
    let path = scratch.path("state/journal.jsonl");
    let text = fs::read_to_string(&path).expect("it is text");
    let old = text.replacen("\"namespace_cookie\":null", "\"namespace_made\":[1,5]", 1);
    assert_ne!(old, text);
    fs::write(&path, old).expect("it is writable");
    assert_eq!(begin(&scratch).content().changes.len(), 1);
    assert_eq!(revert(&scratch, false), [Outcome::Restored]);
}

#[test]
fn a_line_that_can_not_be_read_stops_a_new_set_and_not_the_rest_of_a_revert() {
    let scratch = root("journal-corrupted");
    let path = scratch.path("state/journal.jsonl");
    let mut journal = begin(&scratch);
    for knob in KNOBS {
        journal.set(scratch.root(), "test", &target(knob), "ours").expect("it is taken");
    }
    drop(journal);
    let text = fs::read_to_string(&path).expect("it is text");
    let mangled: Vec<&str> = text
        .lines()
        .enumerate()
        .map(|(index, line)| if index == 3 { "{\"change\":{" } else { line })
        .collect();
    fs::write(&path, mangled.join("\n") + "\n").expect("it is writable");
    // With the change goes what became of it.
    assert_eq!(Content::read(&path).expect("it is read").expect("it is there").corrupted, [4, 5]);
    let error = Journal::begin(&path, identity()).expect_err("it is not whole");
    assert!(matches!(error, JournalError::Corrupted { line: 4, .. }), "{error}");
    assert_eq!(revert(&scratch, false), [Outcome::Restored, Outcome::Restored]);
    assert_eq!(values(&scratch), ["before", "ours", "before"]);
    assert_eq!(revert(&scratch, false), [], "the marks name the changes that are there");
    assert!(Journal::begin(&path, identity()).is_err(), "nobody has looked at it yet");
    assert_eq!(revert(&scratch, true), []);
    assert!(begin(&scratch).content().changes.is_empty(), "settled, it is begun anew");
}

#[test]
fn what_is_no_journal_is_not_read_without_end() {
    let scratch = root("journal-long");
    let path = scratch.path("zeroes");
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|file| file.set_len(JOURNAL_BYTES_MAX + 1)).expect("a file with a hole");
    assert!(matches!(Content::read(&path), Err(JournalError::TooLong(_))));
}

#[test]
fn a_file_that_is_no_journal_or_may_be_somebody_elses_is_neither_followed_nor_changed() {
    let scratch = root("journal-untrusted");
    let path = scratch.path("precious");
    let why = |path: &Path| {
        let errors =
            [Journal::begin(path, identity()).err(), Journal::open(path).err(), Content::read(path).err()];
        errors.map(|error| match error {
            Some(JournalError::Untrusted { why, .. }) => why,
            other => panic!("{other:?}"),
        })
    };
    fs::write(&path, "no line end").expect("a folder of our own");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    assert_eq!(why(&path), ["it is no journal"; 3]);
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "no line end");

    begin(&scratch).set(scratch.root(), "test", &target(KNOBS[0]), "1").expect("it is taken");
    let journal = scratch.path("state/journal.jsonl");
    let link = scratch.path("link");
    std::os::unix::fs::symlink(&journal, &link).expect("a folder of our own");
    assert_eq!(why(&link), ["it is a symbolic link"; 3]);
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o666)).expect("it is ours");
    assert_eq!(why(&journal), ["others than its owner may write to it"; 3]);
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o600)).expect("it is ours");
    if geteuid().is_root() {
        std::os::unix::fs::chown(&journal, Some(12_345), None).expect("root may");
        assert_eq!(why(&journal), ["it belongs to somebody else"; 3]);
        std::os::unix::fs::chown(&journal, Some(0), None).expect("root may");
    }
    assert_eq!(revert(&scratch, false), [Outcome::Restored]);
}

proptest! {
    // Each change waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However far a process got, byte by byte, its successor restores what was before.
    #[test]
    fn a_journal_that_ends_anywhere_restores_everything(
        sets in proptest::collection::vec((0_usize..3, 0_u32..4), 1..8),
        ended in any::<proptest::sample::Index>(),
        is_written in any::<bool>(),
    ) {
        let scratch = root(&format!("journal-ends-{:?}", std::thread::current().id()));
        let path = scratch.path("state/journal.jsonl");
        let mut journal = begin(&scratch);
        for (knob, value) in &sets {
            journal.set(scratch.root(), "test", &target(KNOBS[*knob]), &value.to_string()).expect("it is taken");
        }
        drop(journal);
        let bytes = fs::read(&path).expect("it is there");
        let kept = &bytes[..ended.index(bytes.len() + 1)];
        fs::write(&path, kept).expect("it is writable");

        // The kernel as it was then: all that is on the disk was set, the last perhaps not yet.
        for knob in KNOBS {
            scratch.sysctl(&knob.replace('.', "/"), "before");
        }
        let content = Content::parse(kept);
        prop_assert!(content.corrupted.is_empty());
        for (index, change) in content.changes.iter().enumerate() {
            if is_written || change.found.is_some() || index + 1 < content.changes.len() {
                change.target.write(scratch.root(), &change.new).expect("it is there");
            }
        }
        let outcomes = revert(&scratch, false);
        prop_assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Restored | Outcome::AlreadyRestored)));
        prop_assert_eq!(values(&scratch), ["before"; 3]);
        prop_assert_eq!(revert(&scratch, false), []);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let content = Content::parse(&bytes);
        prop_assert!(content.changes.is_empty() || !bytes.is_empty());
    }
}
