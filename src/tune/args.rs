//! The command line of `corecast tune`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::tune::experiment::{self, ExperimentArgs};
use crate::tune::export::Form;

/// What to do.
#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(subcommand)]
    pub command: TuneCommand,
    /// Another folder in the place of /, for tests
    #[arg(long, value_name = "DIR", global = true, hide = true, default_value = "/")]
    pub root: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum TuneCommand {
    /// Name the profiles, every knob that they set, or what they refuse to set
    List {
        /// The knobs
        #[arg(long)]
        knobs: bool,
        /// What people recommend and no profile sets
        #[arg(long, conflicts_with = "knobs")]
        refused: bool,
        #[command(flatten)]
        form: OutputForm,
    },
    /// Say what a profile or a knob does, what it may cost, and what that is known from; or why nobody should set it
    Explain {
        /// A profile, or a knob: net.core.somaxconn, somaxconn, tcp_tw_recycle
        name: String,
        #[command(flatten)]
        form: OutputForm,
    },
    /// Say what a profile would change here; changes nothing
    #[command(after_help = PLAN_EXAMPLES)]
    Plan {
        #[command(flatten)]
        which: Which,
        /// Look at this network namespace: a name of `ip netns list`, or the id of a process in it
        #[arg(long, value_name = "NAME|PID")]
        netns: Option<String>,
        /// Also what is as it should be, and what is not there
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        form: OutputForm,
    },
    /// Set what a profile would change, all of it or nothing, until the next start of the kernel
    #[command(after_help = APPLY_EXAMPLES)]
    Apply {
        #[command(flatten)]
        which: Which,
        /// Only what belongs to this network namespace, and there: a name of `ip netns list`, or the id of a process in it
        #[arg(long, value_name = "NAME|PID", conflicts_with = "host")]
        netns: Option<String>,
        /// Also what the whole host has once, and the host's own network namespace
        #[arg(long)]
        host: bool,
        /// Say what would be set, and change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        journal: JournalFile,
        #[command(flatten)]
        form: OutputForm,
    },
    /// Restore what `apply` changed, newest first
    #[command(after_help = REVERT_EXAMPLES)]
    Revert {
        /// What was changed in this network namespace: a name of `ip netns list`, or the id of a process in it
        #[arg(long, value_name = "NAME|PID")]
        netns: Option<String>,
        #[command(flatten)]
        journal: JournalFile,
        /// Only what experiments changed that were killed; an applied profile stays
        #[arg(long)]
        experiments: bool,
        /// Also what somebody else has changed since, and what can be read of a journal that is damaged
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        form: OutputForm,
    },
    /// Say what is changed and not restored
    Status {
        /// Only of this network namespace: a name of `ip netns list`, or the id of a process in it [default: of all]
        #[arg(long, value_name = "NAME|PID")]
        netns: Option<String>,
        #[command(flatten)]
        journal: JournalFile,
        #[command(flatten)]
        form: OutputForm,
    },
    /// Measure two arms in turn until it is known which is better, or that there is no difference
    #[command(after_help = experiment::EXAMPLES)]
    Experiment(ExperimentArgs),
    /// Print a profile as a file that outlives a restart, computed for this machine
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        #[command(flatten)]
        which: Which,
        /// For whom
        #[arg(long = "as", value_name = "FORM", value_enum)]
        form: Form,
    },
}

/// Which profile, for how many connections.
#[derive(Debug, Args)]
pub struct Which {
    /// One of `corecast tune list`
    #[arg(required_unless_present = "profile_file", conflicts_with = "profile_file")]
    pub profile: Option<String>,
    /// A profile of one's own, as the files of tuning/ are written
    #[arg(long, value_name = "FILE")]
    pub profile_file: Option<PathBuf>,
    /// For so many connections [default: the profile's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    pub connections: Option<u64>,
}

/// Where changes are noted down.
#[derive(Debug, Args)]
pub struct JournalFile {
    /// [default: /var/lib/corecast/tune/host.jsonl, or netns-INODE.jsonl beside it for another network namespace]
    #[arg(long = "journal", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// How it is printed.
#[derive(Debug, Args)]
pub struct OutputForm {
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub format: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    Text,
    /// One JSON document
    Json,
}

impl OutputForm {
    pub fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }
}

/// Above, it is a slip of the keyboard: there are 2^32 addresses of IPv4.
const CONNECTIONS_MAX: u64 = 4_294_967_296;

/// Help's last part.
pub const EXAMPLES: &str = "\
Examples:
  corecast tune plan 100k                       what this machine lacks for 100,000 connections
  corecast tune explain tcp_tw_recycle          why nobody should set it
  corecast tune apply 100k --netns trial        only in a network namespace: ip netns add trial
  corecast tune apply 100k --host               on this host, until the kernel restarts
  corecast tune revert                          or until then
  corecast tune export 100k --as sysctl.d       for good";

const PLAN_EXAMPLES: &str = "\
Exit codes: 0 nothing to do, 1 something would change, 2 usage, 69 a value can't be read, or no such namespace, 77 no
permission, 78 the profile is wrong. A lower LimitNOFILE is told and doesn't count: it is that of the shell, and corecast's comes from where it is started.

Examples:
  corecast tune plan 1m --connections 300000
  corecast tune plan low-latency --all --format json | jq .steps";

const APPLY_EXAMPLES: &str = "\
Each value is noted down, on the disk, before it is set. If the kernel refuses one, or on Ctrl-C, those before it get their
old values back. Killed, it leaves what `corecast tune revert` undoes. Nothing survives a restart: see `corecast tune export`.

Exit codes: 0 set, or nothing to do; 1 refused by the kernel, and undone; 2 usage, or --host is missing; 69 no such
namespace; 77 no permission; 78 the profile is wrong; 130 interrupted, and undone.";

const REVERT_EXAMPLES: &str = "\
What somebody else has changed since stays as it is, and is told. After a restart of the kernel nothing is left to revert,
nor in a namespace that is gone: its values went with it.

Exit codes: 0 restored, or nothing is left to revert; 1 something stays, or the journal is damaged, in use, or another
namespace's; 2 usage; 69 no such namespace; 77 no permission.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  corecast tune export 100k --as sysctl.d | sudo tee /etc/sysctl.d/60-corecast.conf && sudo sysctl --system
  corecast tune export 100k --as systemd        a drop-in of corecast.service
  corecast tune export 100k --as compose        a file beside compose.yaml
  corecast tune export 100k --as kubernetes     a patch for the Deployment, and what its nodes need";
