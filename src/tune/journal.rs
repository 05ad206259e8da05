//! What was changed in the running kernel, so that it can be undone: a file of JSON lines.
//!
//! Every write is preceded by a line on the disk that holds the old value, so whatever ends the process, the journal knows of
//! each value that may have been changed. One journal belongs to one start of the kernel and one network namespace;
//! afterwards there is nothing left to undo. Whoever writes holds its lock.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use host::{NetworkNamespace, Root};
use serde::{Deserialize, Serialize};

use crate::iso8601;
use crate::tune::target::{Target, TargetError};

/// An open journal, locked until it is dropped.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    content: Content,
}

/// The kernel and the namespace whose values a journal holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Another one after each start of the kernel.
    pub boot_id: String,
    /// The network namespace's.
    pub namespace_inode: u64,
    /// When that was made, where it is known: seconds and nanoseconds since 1970.
    pub namespace_made: Option<(i64, i64)>,
}

/// How the identity of a journal is to that of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// The same.
    Same,
    /// The kernel was started again since.
    OtherBoot,
    /// Its namespace is gone, and this one has its number.
    Gone,
    /// Its namespace is another one.
    OtherNamespace,
}

/// What a journal says.
#[derive(Debug, Default)]
pub struct Content {
    /// `None` where nothing was written yet.
    pub identity: Option<Identity>,
    /// Every change, in the order in which they were made.
    pub changes: Vec<Change>,
    /// Lines that can't be read, by their number. The last one is not among them if it was not finished: its write
    /// was not made.
    pub corrupted: Vec<usize>,
    /// Bytes of the lines that are whole.
    whole_bytes: u64,
}

/// One value that may have been changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// By which later lines name it; it grows.
    number: usize,
    /// On behalf of what: a profile, an experiment.
    pub by: String,
    /// Which.
    pub target: Target,
    /// Before.
    pub old: String,
    /// What it was set to.
    pub new: String,
    /// When, as ISO 8601.
    pub time: String,
    /// What it was read as afterwards; the kernel may have made another value of it. `None` where the process ended before.
    pub found: Option<String>,
    /// Undone, or refused by the kernel.
    pub is_over: bool,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its old value is back.
    Restored,
    /// It had its old value: the process ended before the write, or somebody put it back.
    AlreadyRestored,
    /// Somebody else has changed it since; it stays as it is.
    Alien {
        /// What it is.
        now: String,
    },
    /// The kernel doesn't take the old value, or doesn't have the parameter any more.
    Failed {
        /// The kernel's word.
        error: String,
    },
}

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("{} is in use: another `corecast tune` is at work here; try again when it is done", .0.display())]
    Locked(PathBuf),
    /// It is not as it was written.
    #[error(
        "{}: line {line} can't be read: `corecast tune revert --force` undoes what can be read; or look at the file and \
         mend it", .path.display()
    )]
    Corrupted {
        /// Which journal.
        path: PathBuf,
        /// The first such line.
        line: usize,
    },
    /// It holds changes of another namespace.
    #[error(
        "{} holds changes of the network namespace {theirs}, this one is {ours}: revert them there, or take another \
         --journal", .path.display()
    )]
    OtherNamespace {
        /// Which journal.
        path: PathBuf,
        /// Its namespace.
        theirs: u64,
        /// The caller's.
        ours: u64,
    },
    /// More than [`JOURNAL_BYTES_MAX`].
    #[error("{} has more than {JOURNAL_BYTES_MAX} bytes: that is no journal of corecast's", .0.display())]
    TooLong(PathBuf),
    /// Reading or writing it failed.
    #[error("can't {verb} {}: {error}", .path.display())]
    File {
        /// Open, read or write.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
}

/// Why a value was not set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// By the kernel.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// It can't be noted down, so it was not set.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Journal {
        version: u32,
        boot_id: String,
        namespace_inode: u64,
        namespace_made: Option<(i64, i64)>,
        time: String,
    },
    Change {
        number: usize,
        by: String,
        target: Target,
        old: String,
        new: String,
        time: String,
    },
    Done {
        number: usize,
        found: String,
    },
    Refused {
        number: usize,
        error: String,
    },
    Restored {
        number: usize,
        value: String,
    },
    /// Somebody has decided that what can't be read before it doesn't matter any more.
    Settled {
        time: String,
    },
}

const VERSION: u32 = 1;
/// A change has about 300 bytes on its lines, so these are some 50,000.
const JOURNAL_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Identity {
    /// This kernel's, with `namespace`.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn of(root: &Root, namespace: &NetworkNamespace) -> io::Result<Self> {
        Ok(Self {
            boot_id: root.read("/proc/sys/kernel/random/boot_id")?,
            namespace_inode: namespace.inode(),
            namespace_made: namespace.made(),
        })
    }

    /// How this one, a journal's, is to that of a place.
    pub fn kinship(&self, place: &Self) -> Kinship {
        let is_made_at_once = || match (self.namespace_made, place.namespace_made) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        match () {
            () if self.boot_id != place.boot_id => Kinship::OtherBoot,
            () if self.namespace_inode != place.namespace_inode => Kinship::OtherNamespace,
            () if !is_made_at_once() => Kinship::Gone,
            () => Kinship::Same,
        }
    }
}

impl Content {
    /// Reads the journal at `path`; `None` where there is none. Takes no lock.
    ///
    /// # Errors
    /// [`JournalError::File`], [`JournalError::TooLong`].
    pub fn read(path: &Path) -> Result<Option<Self>, JournalError> {
        let fail = |error| JournalError::File { verb: "read", path: path.to_owned(), error };
        match File::open(path) {
            Ok(mut file) => read_from(&mut file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail(error)),
        }
    }

    /// Changes that are not undone, newest first.
    pub fn outstanding(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().rev().filter(|change| !change.is_over)
    }

    /// What `bytes`, all of a journal, say.
    pub fn parse(bytes: &[u8]) -> Self {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut content = Self { whole_bytes: whole as u64, ..Self::default() };
        let mut numbers = BTreeMap::new();
        for (index, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let taken = serde_json::from_slice(line).is_ok_and(|line| content.take(line, &mut numbers));
            if !taken {
                content.corrupted.push(index + 1);
            }
        }
        content
    }

    /// False for a line that doesn't fit what is before it. `numbers` are the places of the changes by their numbers.
    fn take(&mut self, line: Line, numbers: &mut BTreeMap<usize, usize>) -> bool {
        match line {
            Line::Journal { version, boot_id, namespace_inode, namespace_made, .. } => {
                let is_first = self.identity.is_none() && self.changes.is_empty();
                self.identity.get_or_insert(Identity { boot_id, namespace_inode, namespace_made });
                is_first && version == VERSION
            }
            Line::Change { number, by, target, old, new, time } => {
                let is_new = numbers.insert(number, self.changes.len()).is_none();
                self.changes.push(Change { number, by, target, old, new, time, found: None, is_over: false });
                is_new
            }
            Line::Done { number, found } => {
                self.mark(numbers.get(&number), |change| change.found = Some(found))
            }
            Line::Refused { number, .. } | Line::Restored { number, .. } => {
                self.mark(numbers.get(&number), |change| change.is_over = true)
            }
            Line::Settled { .. } => {
                self.corrupted.clear();
                true
            }
        }
    }

    fn mark(&mut self, place: Option<&usize>, mark: impl FnOnce(&mut Change)) -> bool {
        let change = place.and_then(|place| self.changes.get_mut(*place));
        change.map(mark).is_some()
    }
}

impl Journal {
    /// Opens the journal at `path` to note changes in it, and makes it and its folder where they are not there.
    ///
    /// Continues one of the same identity that has changes left; anything that is over is forgotten.
    ///
    /// # Errors
    /// [`JournalError`]; one that holds changes of another namespace of this kernel is not touched.
    pub fn begin(path: &Path, identity: Identity) -> Result<Self, JournalError> {
        let fail = |verb| move |error| JournalError::File { verb, path: path.to_owned(), error };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(fail("make the folder of"))?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut journal = Self::lock(path, file.map_err(fail("open"))?)?;
        let theirs = journal.content.identity.as_ref();
        let kinship = theirs.map(|theirs| theirs.kinship(&identity));
        let is_lost = matches!(kinship, Some(Kinship::OtherBoot | Kinship::Gone));
        if let Some(line) = journal.content.corrupted.first().filter(|_| !is_lost) {
            return Err(JournalError::Corrupted { path: path.to_owned(), line: *line });
        }
        let is_over = is_lost || journal.content.outstanding().next().is_none();
        match (kinship, theirs) {
            (Some(Kinship::OtherNamespace), Some(theirs)) if !is_over => {
                let (theirs, ours) = (theirs.namespace_inode, identity.namespace_inode);
                return Err(JournalError::OtherNamespace { path: path.to_owned(), theirs, ours });
            }
            (Some(_), _) if !is_over => journal.cut(journal.content.whole_bytes)?,
            _ => journal.start(identity)?,
        }
        Ok(journal)
    }

    /// Opens the journal at `path` to undo what it says; `None` where there is none.
    ///
    /// # Errors
    /// [`JournalError`]; a corrupted one is opened, see [`Content::corrupted`].
    pub fn open(path: &Path) -> Result<Option<Self>, JournalError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Self::lock(path, file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(JournalError::File { verb: "open", path: path.to_owned(), error }),
        }
    }

    /// What it says.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Notes down what `target` is, on the disk, and then sets it to `value`. `by` says on whose behalf.
    ///
    /// Returns what it is afterwards: the kernel may make another value of it, as it does where it has a bound of its own.
    ///
    /// Acts in the network namespace of the calling thread, which is to be this journal's.
    ///
    /// # Errors
    /// [`SetError`]. Where the value is not as it was, the change is outstanding.
    pub fn set(&mut self, root: &Root, by: &str, target: &Target, value: &str) -> Result<String, SetError> {
        let number = self.content.changes.last().map_or(0, |change| change.number + 1);
        let (old, time) = (target.read(root)?, now());
        let (by, target, new) = (by.to_owned(), target.clone(), value.to_owned());
        let change = Change { number, by, target, old, new, time, found: None, is_over: false };
        let Change { by, target, old, new, time, .. } = change.clone();
        self.write(&Line::Change { number, by, target, old, new, time })?;
        self.file.sync_data().map_err(|error| self.error("write", error))?;
        let index = self.content.changes.len();
        self.content.changes.push(change);
        let change = &mut self.content.changes[index];
        let written = change.target.write(root, value);
        let found = change.target.read(root)?;
        // The kernel stores a list of numbers one by one, so the first of them may stay when the second is refused.
        let line = match &written {
            Err(error) if found == change.old => {
                change.is_over = true;
                Line::Refused { number, error: error.to_string() }
            }
            _ => {
                change.found = Some(found.clone());
                Line::Done { number, found: found.clone() }
            }
        };
        self.write(&line)?;
        written?;
        Ok(found)
    }

    /// Undoes what is not undone, newest first; what somebody else has changed since only if `is_forced`.
    ///
    /// Once more for the same journal it finds nothing to do. Forced, and with nothing left, it also settles lines that
    /// can't be read, so that the journal may be used again. Acts in the network namespace of the calling thread, which
    /// is to be this journal's.
    ///
    /// # Errors
    /// [`JournalError`]; the kernel's refusals are among the outcomes, and don't keep the others from being undone.
    pub fn revert(&mut self, root: &Root, is_forced: bool) -> Result<Vec<(Change, Outcome)>, JournalError> {
        self.revert_since(root, 0, is_forced)
    }

    /// The same for all but the first `kept` changes.
    ///
    /// # Errors
    /// As [`Journal::revert`].
    pub fn revert_since(
        &mut self,
        root: &Root,
        kept: usize,
        is_forced: bool,
    ) -> Result<Vec<(Change, Outcome)>, JournalError> {
        self.cut(self.content.whole_bytes)?;
        let mut outcomes = Vec::new();
        for index in (kept..self.content.changes.len()).rev() {
            let change = &self.content.changes[index];
            if change.is_over {
                continue;
            }
            let (change, outcome) = (change.clone(), undo(change, root, is_forced));
            if matches!(outcome, Outcome::Restored | Outcome::AlreadyRestored) {
                self.content.changes[index].is_over = true;
                self.write(&Line::Restored { number: change.number, value: change.old.clone() })?;
            }
            outcomes.push((change, outcome));
        }
        if is_forced && !self.content.corrupted.is_empty() && self.content.outstanding().next().is_none() {
            self.write(&Line::Settled { time: now() })?;
            self.content.corrupted.clear();
        }
        self.file.sync_data().map_err(|error| self.error("write", error))?;
        Ok(outcomes)
    }

    fn lock(path: &Path, mut file: File) -> Result<Self, JournalError> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => {
                return Err(JournalError::File { verb: "lock", path: path.to_owned(), error });
            }
        }
        let content = read_from(&mut file, path)?;
        Ok(Self { path: path.to_owned(), file, content })
    }

    /// Empties it and writes whose it is.
    fn start(&mut self, identity: Identity) -> Result<(), JournalError> {
        self.content = Content::default();
        self.cut(0)?;
        let Identity { boot_id, namespace_inode, namespace_made } = identity.clone();
        self.content.identity = Some(identity);
        let time = now();
        self.write(&Line::Journal { version: VERSION, boot_id, namespace_inode, namespace_made, time })?;
        // A new file is on the disk when its folder is.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        synced.map_err(|error| self.error("write the folder of", error))
    }

    /// Leaves its first `bytes`: a line that was not finished must not become a part of the next one.
    fn cut(&mut self, bytes: u64) -> Result<(), JournalError> {
        self.content.whole_bytes = bytes;
        self.file.set_len(bytes).map_err(|error| self.error("write", error))
    }

    fn write(&mut self, line: &Line) -> Result<(), JournalError> {
        let mut text = serde_json::to_vec(line).map_err(|error| self.error("write", error.into()))?;
        text.push(b'\n');
        let whole_bytes = self.content.whole_bytes;
        let written = self.file.seek(SeekFrom::Start(whole_bytes)).and_then(|_| self.file.write_all(&text));
        if let Err(error) = written {
            // What a full disk took of it must not become a part of the next line; if this fails, the next cut does it.
            let _cut_by_the_next = self.file.set_len(whole_bytes);
            return Err(self.error("write", error));
        }
        self.content.whole_bytes += text.len() as u64;
        Ok(())
    }

    fn error(&self, verb: &'static str, error: io::Error) -> JournalError {
        JournalError::File { verb, path: self.path.clone(), error }
    }
}

fn read_from(file: &mut File, path: &Path) -> Result<Content, JournalError> {
    let mut bytes = Vec::new();
    file.take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| JournalError::File {
        verb: "read",
        path: path.to_owned(),
        error,
    })?;
    match bytes.len() as u64 > JOURNAL_BYTES_MAX {
        true => Err(JournalError::TooLong(path.to_owned())),
        false => Ok(Content::parse(&bytes)),
    }
}

fn undo(change: &Change, root: &Root, is_forced: bool) -> Outcome {
    let now = match change.target.read(root) {
        Ok(now) if now == change.old => return Outcome::AlreadyRestored,
        Ok(now) => now,
        Err(error) => return Outcome::Failed { error: error.to_string() },
    };
    let is_ours = now == change.new || change.found.as_ref() == Some(&now);
    if !is_ours && !is_forced {
        return Outcome::Alien { now };
    }
    match change.target.write(root, &change.old) {
        Ok(()) => Outcome::Restored,
        Err(error) => Outcome::Failed { error: error.to_string() },
    }
}

fn now() -> String {
    iso8601::text(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
