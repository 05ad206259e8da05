//! `corecast doctor`: what the host, its kernel and Redis say, against what a configuration needs. Changes nothing.
//!
//! Each file below owns one thing that is looked at: it reads its facts and judges them apart, so that a table of facts tests
//! the judgement. Addresses are bound for as long as the bind takes and never listened on.

mod backlog;
mod bounds;
mod cgroup;
mod clock;
mod cluster;
mod conntrack;
mod cpu;
mod descriptors;
mod driver;
mod finding;
mod memory;
mod need;
mod ports;
pub mod redis;
mod report;
mod seats;
mod sentinels;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use host::{Cgroup, Process, Root};
use shards::config::Config;

use crate::cli::ConfigArgs;
use crate::configuration;
use crate::output::print;
use backlog::Backlog;
use cpu::Layout;
use descriptors::Descriptors;
use driver::Interface;
use finding::Finding;
use memory::MemoryFacts;
use need::Need;
use ports::Ports;

pub const EXAMPLES: &str = "\
Reads and tries, and changes nothing. A line is ok, info (nothing to do, or not applicable), warn (it serves, with less than it
could) or bad (what was asked for will not work), and names the command that cures it.

Examples:
  corecast doctor --preset workflow --redis redis://localhost:6379
  corecast doctor --config /etc/corecast.toml --connections 1000000
  corecast doctor --format json | jq -r '.checks[] | select(.level == \"bad\").cure'

Exit codes: 0 all is well, 1 warnings, 2 something is bad (or the command line is wrong), 78 configuration.";

/// Flags of `corecast doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How many connections are wanted; default: --connections-max, or as many as the limit of descriptors leaves
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    connections: Option<u64>,
    /// How to print
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Where proc and sys are, for tests
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// See [`DoctorArgs::format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line a check, for people
    Text,
    /// One object
    Json,
}

/// Judges and prints.
///
/// # Errors
/// Those of the configuration.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let loaded = configuration::load(&args.config)?;
    configuration::level(&loaded)?;
    configuration::warn(&loaded);
    let root = args.root.clone().map_or_else(Root::system, Root::at);
    let findings = judge(&root, &loaded.config, args.connections);
    print(&match args.format {
        Format::Text => report::text(&findings),
        Format::Json => report::json(&findings),
    })?;
    Ok(ExitCode::from(report::exit_code(&findings)))
}

/// All there is to say, in the order of the manual.
fn judge(root: &Root, config: &Config, wanted: Option<u64>) -> Vec<Finding> {
    let process = Process::read(root);
    let descriptors = Descriptors::read(root);
    let usable = process.as_ref().map_or(&[][..], |process| &process.cores);
    let need = Need::of(config, wanted, usable, descriptors.process.and_then(|limits| limits.hard));
    let (cgroup, layout) = (Cgroup::read(root), Layout::read(root));
    let mut findings = bounds::judge(config, &need);
    findings.extend(Interface::read(root, process.as_ref()).judge(config.driver));
    findings.extend(descriptors.judge(&need));
    findings.extend(Backlog::read(root).judge(&need));
    findings.extend(Ports::read(root, &config.listen, config.admin, process.as_ref()).judge(&need));
    findings.extend(MemoryFacts::read(root, cgroup).judge(&need));
    findings.push(conntrack::judge(root, &need));
    findings.extend(cgroup::judge(&cgroup, &layout.online(), &need));
    findings.extend(layout.judge(&need));
    findings.push(clock::judge(root));
    findings.extend(redis::judge(config));
    findings
}
