//! Where values are read and set: a network namespace, below a root.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use host::{NetworkNamespace, Root};

use crate::exit::{Failure, NO_PERMISSION, UNAVAILABLE};
use crate::tune::identity::Identity;

/// The caller's own network namespace, or another one that was named.
#[derive(Debug)]
pub struct Place {
    root: Root,
    namespace: NetworkNamespace,
    /// As it was named.
    name: Option<String>,
}

impl Place {
    /// The caller's own namespace, or `netns`: a name as ip-netns(8) has it, or the id of a process that is in it.
    ///
    /// # Errors
    /// 69 where there is no such namespace, 77 where this user may not look at it.
    pub fn open(root: Root, netns: Option<&str>) -> Result<Self, Failure> {
        let namespace = match netns {
            None => NetworkNamespace::own(&root),
            Some(name) => match name.parse() {
                Ok(pid) => NetworkNamespace::of_process(&root, pid),
                Err(_) => NetworkNamespace::named(&root, name),
            },
        };
        let what = netns
            .map_or("its own network namespace".to_owned(), |name| format!("the network namespace {name}"));
        let namespace = namespace.map_err(|error| {
            let due = "due is a name of `ip netns list`, or the id of a process in it";
            failure(&error, format!("can't open {what}: {error}; {due}"))
        })?;
        Ok(Self { root, namespace, name: netns.map(str::to_owned) })
    }

    /// Runs `work` in the namespace, with the root below which its values are.
    ///
    /// # Errors
    /// 77 where this user may not enter it.
    pub fn run<T: Send>(&self, work: impl FnOnce(&Root) -> T + Send) -> Result<T, Failure> {
        let entered = self.namespace.run(|| work(&self.root));
        entered.map_err(|error| failure(&error, format!("can't enter {self}: {error}; it takes root")))
    }

    /// Whether it is the namespace of the first process: the host's, unless this is a container.
    pub fn is_host(&self) -> bool {
        self.namespace.is_of_first_process(&self.root)
    }

    /// What the whole host has once is noted down in the host's journal, and only the host's namespace has all of it.
    ///
    /// # Errors
    /// 2 in another one.
    pub fn require_host(&self) -> Result<(), Failure> {
        if self.is_host() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "--host is found in {self}, due in the host's: what the whole host has once would be noted down with this \
             namespace's values, and forgotten with it. Leave the namespace first (`nsenter -t 1 -n corecast tune ...`), or \
             leave --host away"
        )))
    }

    /// What a shell runs to undo what the journal at `path` says of this place.
    pub fn undo_command(&self, path: &Path) -> String {
        let netns = self.name.as_ref().map_or(String::new(), |name| format!(" --netns {name}"));
        let journal = match path == self.journal() {
            true => String::new(),
            false => format!(" --journal {}", path.display()),
        };
        format!("corecast tune revert{netns}{journal}")
    }

    /// Below what its files are.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whose values a journal of this place holds.
    ///
    /// # Errors
    /// 69 where the kernel doesn't tell which start of it this is.
    pub fn identity(&self) -> Result<Identity, Failure> {
        Identity::of(&self.root, &self.namespace).map_err(|error| {
            failure(&error, format!("can't tell which start of the kernel this is: {error}"))
        })
    }

    /// Where its journal is, if nobody says otherwise: one for the host, and one for each other namespace.
    pub fn journal(&self) -> PathBuf {
        let file = match self.is_host() {
            true => "host.jsonl".to_owned(),
            false => format!("netns-{}.jsonl", self.namespace.inode()),
        };
        journal_folder(&self.root).join(file)
    }
}

/// Where journals are, if nobody says otherwise.
pub fn journal_folder(root: &Root) -> PathBuf {
    root.path("/var/lib/corecast/tune")
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inode = self.namespace.inode();
        match &self.name {
            Some(name) => write!(f, "the network namespace {name} ({inode})"),
            None if self.is_host() => write!(f, "the host's network namespace ({inode})"),
            None => write!(f, "this process's network namespace ({inode})"),
        }
    }
}

fn failure(error: &io::Error, sentence: String) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(NO_PERMISSION, sentence),
        _ => Failure::new(UNAVAILABLE, sentence),
    }
}
