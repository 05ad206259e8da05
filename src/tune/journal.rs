//! What was changed in the running kernel, so that it can be undone: a file of JSON lines.
//!
//! Every write is preceded by a line on the disk that holds the old value, so whatever ends the process, the journal knows of
//! each value that may have been changed. One journal belongs to one start of the kernel and one network namespace;
//! afterwards there is nothing left to undo. Whoever writes holds its lock.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use host::Root;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::iso8601;
use crate::tune::identity::{Identity, Kinship};
use crate::tune::outcome::{Outcome, Reverted};
use crate::tune::target::{Target, TargetError};

/// An open journal, locked until it is dropped.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    content: Content,
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

/// How [`Change::by`] begins where it is an experiment.
pub const EXPERIMENT: &str = "experiment ";

impl Change {
    /// Whether it was made for a sample.
    pub fn is_of_experiment(&self) -> bool {
        self.by.starts_with(EXPERIMENT)
    }
}

/// Which changes are to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// All but so many, the oldest.
    After(usize),
    /// Those that experiments made: one that was killed could not put them back.
    OfExperiments,
}

impl Part {
    fn holds(self, index: usize, change: &Change) -> bool {
        match self {
            Self::Whole => true,
            Self::After(kept) => index >= kept,
            Self::OfExperiments => change.is_of_experiment(),
        }
    }
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
    /// It may be somebody else's, or something else.
    #[error("{} is not touched: {why}; take another --journal, or look at it and mend it", .path.display())]
    Untrusted {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
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
        #[serde(default)]
        namespace_cookie: Option<u64>,
        /// Told namespaces apart before there was a cookie.
        #[serde(default, skip_serializing)]
        namespace_made: Option<IgnoredAny>,
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
/// Of every file that holds anything: its first line is [`Line::Journal`].
const BEGINNING: &[u8] = b"{\"journal\":";
/// A change has about 300 bytes on its lines, so these are some 50,000.
const JOURNAL_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Content {
    /// Reads the journal at `path`; `None` where there is none. Takes no lock.
    ///
    /// # Errors
    /// [`JournalError::File`], [`JournalError::TooLong`].
    pub fn read(path: &Path) -> Result<Option<Self>, JournalError> {
        let file = existing(open_file(path, OpenOptions::new().read(true)))?;
        file.map(|mut file| read_from(&mut file, path)).transpose()
    }

    /// Changes that are not undone, newest first.
    pub fn outstanding(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().rev().filter(|change| !change.is_over)
    }

    fn parse(bytes: &[u8]) -> Self {
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
            Line::Journal { version, boot_id, namespace_inode, namespace_cookie, .. } => {
                let is_first = self.identity.is_none() && self.changes.is_empty();
                self.identity.get_or_insert(Identity { boot_id, namespace_inode, namespace_cookie });
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
        let file = open_file(path, options.read(true).write(true).create(true).truncate(false))?;
        let mut journal = Self::lock(path, file)?;
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
        let file = existing(open_file(path, OpenOptions::new().read(true).write(true)))?;
        file.map(|file| Self::lock(path, file)).transpose()
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

    /// Undoes `part` of what is not undone, newest first; what somebody else has changed since only if `is_forced`.
    ///
    /// Once more for the same journal it finds nothing to do. Forced, and with nothing left, it also settles lines that
    /// can't be read, so that the journal may be used again. Acts in the network namespace of the calling thread, which
    /// is to be this journal's.
    ///
    /// Neither the kernel's refusals nor a journal that takes no line keep other values from being undone.
    pub fn revert(&mut self, root: &Root, part: Part, is_forced: bool) -> Reverted {
        let mut noted = self.cut(self.content.whole_bytes);
        let mut outcomes = Vec::new();
        for index in (0..self.content.changes.len()).rev() {
            let change = &self.content.changes[index];
            if change.is_over || !part.holds(index, change) {
                continue;
            }
            let change = change.clone();
            let outcome = Outcome::of_undoing(&change, root, is_forced);
            if outcome.is_restored() {
                self.content.changes[index].is_over = true;
                let line = Line::Restored { number: change.number, value: change.old.clone() };
                noted = noted.and(self.write(&line));
            }
            outcomes.push((change, outcome));
        }
        if is_forced && !self.content.corrupted.is_empty() && self.content.outstanding().next().is_none() {
            noted = noted.and(self.write(&Line::Settled { time: now() }));
            self.content.corrupted.clear();
        }
        let synced = self.file.sync_data().map_err(|error| self.error("write", error));
        Reverted { outcomes, noted: noted.and(synced) }
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
        let Identity { boot_id, namespace_inode, namespace_cookie } = identity.clone();
        self.content.identity = Some(identity);
        let time = now();
        self.write(&Line::Journal {
            version: VERSION,
            boot_id,
            namespace_inode,
            namespace_cookie,
            namespace_made: None,
            time,
        })?;
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

/// `None` for a file that is not there.
fn existing(opened: Result<File, JournalError>) -> Result<Option<File>, JournalError> {
    match opened {
        Err(JournalError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Opens the file of a journal. What it says is written to the kernel by whoever reverts, mostly root: so it must be nobody
/// else's to write.
fn open_file(path: &Path, options: &mut OpenOptions) -> Result<File, JournalError> {
    let untrusted = |why| JournalError::Untrusted { path: path.to_owned(), why };
    // A link leads anywhere, and a pipe lets everybody wait.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = options.mode(0o644).custom_flags(flags).open(path);
    let fail = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => untrusted("it is a symbolic link"),
        _ => JournalError::File { verb: "open", path: path.to_owned(), error },
    };
    let file = opened.map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    match metadata.uid() {
        _ if !metadata.is_file() => Err(untrusted("it is no file")),
        owner if owner != 0 && owner != geteuid().as_raw() => Err(untrusted("it belongs to somebody else")),
        _ if metadata.mode() & 0o022 != 0 => Err(untrusted("others than its owner may write to it")),
        _ => Ok(file),
    }
}

fn read_from(file: &mut File, path: &Path) -> Result<Content, JournalError> {
    let mut bytes = Vec::new();
    file.take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| JournalError::File {
        verb: "read",
        path: path.to_owned(),
        error,
    })?;
    // Whose first line was not finished has the beginning of it.
    let is_journal = bytes.starts_with(BEGINNING) || BEGINNING.starts_with(&bytes);
    match bytes.len() as u64 > JOURNAL_BYTES_MAX {
        true => Err(JournalError::TooLong(path.to_owned())),
        false if !is_journal => {
            Err(JournalError::Untrusted { path: path.to_owned(), why: "it is no journal" })
        }
        false => Ok(Content::parse(&bytes)),
    }
}

fn now() -> String {
    iso8601::text(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
