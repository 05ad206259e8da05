//! Dead letters in a file: one line of JSON each, appended.
//!
//! A replayed letter is marked in place, by its first byte: one write of one byte, which a crash either did or didn't
//! do. Marked lines are removed later, by writing the rest anew and renaming it over the file. A lock file beside it
//! (`PATH.lock`) keeps that apart from appending; the file is opened anew for each letter, because a rename may have
//! replaced it. `PATH.replay.lock` keeps two replays apart.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{DeadLetter, DeadLetterError, DeadLetters};

/// Bytes of the file beyond which nothing is added: what nobody replays must not fill the disk.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// A line: an event, its JSON escapes and the reason.
const LINE_BYTES_MAX: u64 = 4 * crate::event::EVENT_BYTES_MAX as u64;
/// In the place of a line's `{` when its letter has been replayed.
const REPLAYED: u8 = b'-';

/// Keeps dead letters in a file.
#[derive(Debug)]
pub struct FileLetters {
    path: PathBuf,
}

impl FileLetters {
    /// Appends to `path`, which is made when it isn't there.
    ///
    /// # Errors
    /// [`DeadLetterError::File`] when it can't be written: better now than with the first letter.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DeadLetterError> {
        let path = path.into();
        append(&path).map_err(|error| file_error(&path, error))?;
        Ok(Self { path })
    }
}

impl DeadLetters for FileLetters {
    fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        let failed = |error| file_error(&self.path, error);
        let _lock = lock(&self.path).map_err(failed)?;
        let mut file = append(&self.path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes >= FILE_BYTES_MAX {
            let place = self.path.display().to_string();
            return Err(DeadLetterError::Full { place, held: format!("{bytes} bytes") });
        }
        let mut line = letter.to_json();
        line.push('\n');
        // After a crash in the middle of a line the next one still begins on its own.
        if bytes > 0 && !ends_with_newline(&file, bytes).map_err(failed)? {
            line.insert(0, '\n');
        }
        file.write_all(line.as_bytes()).map_err(failed)
    }
}

/// A file of dead letters, to be read and replayed.
#[derive(Debug)]
pub struct LetterFile {
    path: PathBuf,
    file: File,
    /// Where the file ended when it was opened: letters that die again meanwhile are not read.
    bytes: u64,
    /// Held by a replay.
    _alone: Option<File>,
}

/// Which line of the file.
#[derive(Debug, Clone, Copy)]
pub struct LineMark {
    /// From 1, marked lines counted.
    pub line: u64,
    /// Where the line begins.
    offset: u64,
}

/// A line of the file.
#[derive(Debug)]
pub struct NumberedLetter {
    /// Which it is.
    pub mark: LineMark,
    /// What it says.
    pub letter: Result<DeadLetter, DeadLetterError>,
}

impl LetterFile {
    /// Opens `path` to be read.
    ///
    /// # Errors
    /// [`DeadLetterError::File`], also when it isn't there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DeadLetterError> {
        Self::open_with(path.into(), None)
    }

    /// Opens `path` to be replayed. Only one replay is at work at a time: two would publish everything twice.
    ///
    /// # Errors
    /// [`DeadLetterError::File`], and [`DeadLetterError::Busy`] while another replay has it.
    pub fn open_for_replay(path: impl Into<PathBuf>) -> Result<Self, DeadLetterError> {
        let path = path.into();
        let alone = lock_file(&path, ".replay.lock").map_err(|error| file_error(&path, error))?;
        match alone.try_lock() {
            Ok(()) => Self::open_with(path, Some(alone)),
            Err(TryLockError::WouldBlock) => Err(DeadLetterError::Busy { place: path.display().to_string() }),
            Err(TryLockError::Error(error)) => Err(file_error(&path, error)),
        }
    }

    fn open_with(path: PathBuf, alone: Option<File>) -> Result<Self, DeadLetterError> {
        let open = || {
            let _lock = lock(&path)?;
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(|error| file_error(&path, error))?;
        Ok(Self { path, file, bytes, _alone: alone })
    }

    /// The letters that have not been replayed, in the order in which they died; a line at a time in memory.
    ///
    /// # Errors
    /// [`DeadLetterError::File`]; a line that is no letter is an item instead.
    pub fn letters(
        &self,
    ) -> Result<impl Iterator<Item = Result<NumberedLetter, DeadLetterError>> + use<>, DeadLetterError> {
        let failed = |error| file_error(&self.path, error);
        let mut file = self.file.try_clone().map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let lines = Lines { reader: BufReader::new(file.take(self.bytes)), offset: 0, line: 0 };
        let path = self.path.clone();
        Ok(lines.map(move |line| line.map_err(|error| file_error(&path, error))))
    }

    /// Marks a letter as replayed. After a crash between its publication and this it is replayed a second time.
    ///
    /// # Errors
    /// [`DeadLetterError::File`].
    pub fn mark(&self, mark: &LineMark) -> Result<(), DeadLetterError> {
        self.file.write_all_at(&[REPLAYED], mark.offset).map_err(|error| file_error(&self.path, error))
    }

    /// Removes the marked lines; letters that arrive meanwhile wait for it.
    ///
    /// # Errors
    /// [`DeadLetterError::File`]; the file is then as it was, marks included.
    pub fn compact(self) -> Result<(), DeadLetterError> {
        compact(&self.path).map_err(|error| file_error(&self.path, error))
    }
}

fn compact(path: &Path) -> io::Result<()> {
    let _lock = lock(path)?;
    let beside = with_suffix(path, ".new");
    let mut reader = BufReader::new(File::open(path)?);
    let mut kept = io::BufWriter::new(File::create(&beside)?);
    kept.get_ref().set_permissions(fs::metadata(path)?.permissions())?;
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line[0] != REPLAYED {
            kept.write_all(&line)?;
        }
        line.clear();
    }
    kept.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&beside, path)
}

struct Lines<R> {
    reader: R,
    offset: u64,
    line: u64,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<NumberedLetter>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (bytes, text) = match take_line(&mut self.reader) {
                Ok(Some(line)) => line,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            let offset = self.offset;
            self.offset += bytes;
            self.line += 1;
            if !text.is_empty() && text[0] != REPLAYED {
                let letter =
                    std::str::from_utf8(&text).map_err(super::unreadable).and_then(DeadLetter::from_json);
                return Some(Ok(NumberedLetter { mark: LineMark { line: self.line, offset }, letter }));
            }
        }
    }
}

/// The next line without its end, and how many bytes it took. Of one beyond the bound only a part is kept, which is no
/// letter then.
fn take_line(reader: &mut impl BufRead) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut text = Vec::new();
    let mut bytes = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text)? as u64;
    if bytes == 0 {
        return Ok(None);
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    } else if bytes == LINE_BYTES_MAX {
        bytes += reader.skip_until(b'\n')? as u64;
    }
    Ok(Some((bytes, text)))
}

fn append(path: &Path) -> io::Result<File> {
    // Readable too: whether the last line is whole is looked up.
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn ends_with_newline(file: &File, bytes: u64) -> io::Result<bool> {
    let mut last = [0];
    file.read_exact_at(&mut last, bytes - 1)?;
    Ok(last == *b"\n")
}

/// Holds `PATH.lock` until it is dropped.
fn lock(path: &Path) -> io::Result<File> {
    let file = lock_file(path, ".lock")?;
    file.lock()?;
    Ok(file)
}

fn lock_file(path: &Path, suffix: &str) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(with_suffix(path, suffix))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn file_error(path: &Path, error: io::Error) -> DeadLetterError {
    DeadLetterError::File { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::dead_letter::tests::letter;

    /// A directory of one test's own.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("corecast-letters-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // A leftover directory is no reason to fail a test that has already spoken.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let file = LetterFile::open(path).unwrap();
        let letters = file.letters().unwrap().map(|letter| letter.unwrap().letter.unwrap());
        letters.map(|letter| letter.event.payload()["number"].as_u64().unwrap()).collect()
    }

    #[test]
    fn marked_letters_are_not_read_again_and_compacting_removes_them() {
        let scratch = Scratch::new();
        let path = scratch.0.join("dead.jsonl");
        let letters = FileLetters::open(&path).unwrap();
        (1..=3).for_each(|number| letters.keep(&letter(number)).unwrap());
        let file = LetterFile::open(&path).unwrap();
        let second = file.letters().unwrap().nth(1).unwrap().unwrap();
        assert_eq!(second.mark.line, 2);
        file.mark(&second.mark).unwrap();
        assert_eq!(numbers(&path), [1, 3]);
        letters.keep(&letter(4)).unwrap();
        file.compact().unwrap();
        letters.keep(&letter(5)).unwrap();
        assert_eq!(numbers(&path), [1, 3, 4, 5], "what arrived meanwhile is kept");
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    #[test]
    fn a_line_that_a_crash_cut_short_spoils_only_itself() {
        let scratch = Scratch::new();
        let path = scratch.0.join("dead.jsonl");
        fs::write(&path, "{\"died_at\":\"2026").unwrap();
        FileLetters::open(&path).unwrap().keep(&letter(1)).unwrap();
        let file = LetterFile::open(&path).unwrap();
        let read: Vec<_> = file.letters().unwrap().map(|item| item.unwrap().letter.is_ok()).collect();
        assert_eq!(read, [false, true]);
        file.compact().unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("{\"died_at\":\"2026\n"), "it is kept");
    }

    #[test]
    fn a_reader_sees_only_what_was_there_when_it_opened_the_file() {
        let scratch = Scratch::new();
        let path = scratch.0.join("dead.jsonl");
        let letters = FileLetters::open(&path).unwrap();
        letters.keep(&letter(1)).unwrap();
        let file = LetterFile::open(&path).unwrap();
        letters.keep(&letter(2)).unwrap();
        assert_eq!(file.letters().unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_replayed_by_one_at_a_time() {
        let scratch = Scratch::new();
        let path = scratch.0.join("dead.jsonl");
        FileLetters::open(&path).unwrap();
        let first = LetterFile::open_for_replay(&path).unwrap();
        let error = LetterFile::open_for_replay(&path).unwrap_err().to_string();
        assert!(error.contains("another replay"), "{error}");
        assert!(LetterFile::open(&path).is_ok(), "reading does no harm");
        drop(first);
        assert!(LetterFile::open_for_replay(&path).is_ok());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_found_at_the_start() {
        let error = FileLetters::open("/nonexistent/dead.jsonl").unwrap_err().to_string();
        assert!(error.starts_with("dead letters in /nonexistent/dead.jsonl: "), "{error}");
        assert!(LetterFile::open("/nonexistent/dead.jsonl").is_err());
    }
}
