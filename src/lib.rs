//! corecast: text in, engine started, signals out.
//!
//! A library of one function, so that what reads text here can be called by the fuzz targets (`fuzz/`) too: with the feature
//! `fuzz` there is a second door, the module of that name. Nothing else depends on it.

// They panic where nobody reads; `output` has others.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod activity;
mod cli;
mod client;
mod clients;
mod configuration;
mod connection;
mod consume;
mod dead_letters;
mod dialect;
mod doctor;
mod exit;
mod footprint;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod hints;
mod huge_pages;
mod iso8601;
mod logs;
mod manager;
mod marks;
mod output;
mod preset;
mod process;
mod publish;
mod random;
mod record;
mod redis;
mod report;
mod serve;
mod signals;
mod subscribe;
mod supervisor;
mod tally;
mod tune;

use std::process::ExitCode;

use clap::Parser;
use shards::net::Passed;

use cli::{Cli, Command, ConfigCommand};
use exit::Failure;
use huge_pages::Refusal;
use process::Process;

/// Does what the command line says, and says how it ended.
pub fn run() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Serve(args) => start(&args),
        Command::CheckConfig(args) => configuration::check(&args.in_place()),
        Command::Config { command: ConfigCommand::Show(args) } => configuration::show(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Publish(args) => publish::run(*args),
        Command::Consume(args) => consume::run(&args),
        Command::DeadLetters { command } => dead_letters::run(&command),
        Command::Subscribe(args) => subscribe::run(args),
        Command::Clients(args) => clients::run(args),
        Command::Report(args) => report::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Version { verbose } => version(verbose),
    };
    ended.unwrap_or_else(|error| exit::report(&error))
}

fn start(args: &cli::ConfigArgs) -> anyhow::Result<ExitCode> {
    let refusal = Refusal::make();
    // Before anything is opened, and before there are threads.
    let (process, passed) = match Process::from_environment()? {
        Some((process, passed)) => (Some(process), passed),
        None => (None, Passed::from_environment().map_err(|error| Failure::config(error.to_string()))?),
    };
    let mut loaded = configuration::load(args)?;
    let level = configuration::level(&loaded)?;
    let named = process.as_ref().map(|process| ("process", process.index().into()));
    let _logs = logs::start(loaded.config.log_format, level, named.into_iter().collect())?;
    refusal.settle(loaded.config.expert.huge_pages);
    if let Some(process) = &process {
        process.apply_to(&mut loaded);
    }
    match loaded.config.processes {
        1 => serve::run(&loaded, passed, process.as_ref()),
        _ => supervisor::run(&loaded, passed),
    }
}

fn version(verbose: bool) -> anyhow::Result<ExitCode> {
    let mut text = format!("corecast {}\n", env!("CARGO_PKG_VERSION"));
    if verbose {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let presets = shards::config::preset_names().collect::<Vec<_>>().join(" ");
        let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
        text.push_str(&format!("target {arch}-{os}\nprofile {profile}\npresets {presets}\n"));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
