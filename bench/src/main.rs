//! `corecast-bench`: what a WebSocket fan-out server pays per delivery, measured by processes that check what they get.
//!
//! Owns a whole run: starts the server (pinned), Redis, and receiver processes (`receivers`, `receiver`), publishes by a
//! schedule that never waits for the server (`publisher`, `schedule`), reads CPU and memory from the kernel (`measure`),
//! and measures a plain `send()` loop in the same run (`floor`). Where connections end and come back, receivers dial while
//! they receive (`comeback`), and messages leave by a timetable that they know (`metronome`, `rhythm`). A `scenario` is made of `stage`s and ends in `figure`s;
//! `table` is the set that corecast promises, `report` writes raw results, `page` makes pages of them. `ingest` looks at the relay alone, pushed to by
//! `replay`. Nothing that a server says about itself becomes a figure: its counters are read only to see that nothing was
//! lost before it was sent, and are told as its own word.

mod addresses;
mod board;
mod cli;
mod comeback;
mod dial;
mod echo;
mod figure;
mod figure_table;
mod floor;
mod growth;
mod ingest;
mod latency;
mod measure;
mod metronome;
mod netstat;
mod orders;
mod page;
mod peer;
mod phase;
mod post;
mod process;
mod progress;
mod publisher;
mod receiver;
mod receivers;
mod replay;
mod report;
mod rhythm;
mod scenario;
mod schedule;
mod sheet;
mod slab;
mod stage;
mod stamp;
mod sys;
mod table;
mod tally;
mod units;
mod versus;
mod wire;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cli::{Cli, Command, Common};
use crate::figure::{Figure, Verdict};
use crate::ingest::Plan;
use crate::orders::Receiving;
use crate::scenario::{Outcome, SlowPlan};
use crate::stage::Bench;
use crate::table::Measured;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("corecast-bench: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::ReceiverProcess { index, processes, counters, poll_ns } => {
            let receiving = match poll_ns {
                0 => Receiving::Epoll,
                interval_ns => Receiving::Poll { interval_ns },
            };
            receiver::run(index, processes, &counters, receiving)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Page { files, out } => {
            println!("{}", page::write(&files, out.as_deref())?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::FloorProcess => floor::run().map(|()| ExitCode::SUCCESS),
        Command::Table(common) => {
            let bench = prepare(common)?;
            finish_table("table", &bench, table::run(&bench))
        }
        Command::Versus { rows, common } => {
            let bench = prepare(common)?;
            let measured = versus::run(&bench, &rows)?;
            finish_table("versus", &bench, measured)
        }
        Command::Fanout { crowd, rate, group, common } => {
            one("fanout", common, |bench| scenario::fanout(bench, &crowd, rate, group))
        }
        Command::Burst { crowd, messages, common } => {
            one("burst", common, |bench| scenario::burst(bench, &crowd, messages))
        }
        Command::Saturate { crowd, windows, common } => {
            one("saturate", common, |bench| scenario::saturate(bench, &crowd, &windows))
        }
        Command::Idle { clients, rooms, common } => {
            one("idle", common, |bench| scenario::idle(bench, clients, rooms))
        }
        Command::Churn { handshakes, parallel, common } => {
            one("churn", common, |bench| scenario::churn(bench, handshakes, parallel))
        }
        Command::Shards { crowd, window, shards_list, common } => {
            refuse_peers(&common, "shards are corecast's alone")?;
            one("shards", common, |bench| scenario::shards(bench, &crowd, window, &shards_list))
        }
        Command::Echo { clients, rate, bytes, echo_rate, common } => {
            one("echo", common, |bench| scenario::echo(bench, clients, rate, bytes, echo_rate))
        }
        Command::Slow { clients, stalled_every, rate, bytes, default_policy, common } => {
            one("slow", common, |bench| {
                let plan = SlowPlan { clients, stalled_every, rate, bytes, default_policy };
                scenario::slow(bench, &plan)
            })
        }
        Command::Ingest { rooms, members, bytes, publications, source, common } => {
            refuse_peers(&common, "ingest looks at corecast's relay alone")?;
            let plan = Plan { rooms, members, bytes, publications, source };
            one("ingest", common, |bench| ingest::run(bench, &plan))
        }
        Command::PresetCost { crowd, rate, group, common } => {
            refuse_peers(&common, "preset-cost compares corecast with itself")?;
            one("preset-cost", common, |bench| ingest::preset_cost(bench, &crowd, rate, group))
        }
        Command::Storm { plan, common } => one("storm", common, |bench| scenario::storm(bench, &plan)),
        Command::Soak { plan, common } => one("soak", common, |bench| scenario::soak(bench, &plan)),
        Command::Scale { plan, common } => one("scale", common, |bench| scenario::scale(bench, &plan)),
        Command::Floor { clients, rate, bytes, gather, common } => {
            refuse_peers(&common, "floor measures no server")?;
            one("floor", common, |bench| scenario::floor(bench, clients, rate, bytes, &gather))
        }
    }
}

fn prepare(mut common: Common) -> Result<Bench> {
    common.settle_cores();
    sys::catch_interrupts().context("catching interrupts")?;
    sys::raise_descriptor_limit().context("raising the descriptor limit")?;
    let cores = &common.generator_cores;
    sys::pin_to(cores).with_context(|| format!("pinning to the cores {cores:?}"))?;
    sys::sharpen_timers();
    Bench::new(common)
}

fn refuse_peers(common: &Common, why: &str) -> Result<()> {
    if common.peers.is_empty() { Ok(()) } else { bail!("{why}: leave out --peer and --peers") }
}

fn one(name: &str, common: Common, measure: impl FnOnce(&Bench) -> Result<Outcome>) -> Result<ExitCode> {
    let bench = prepare(common)?;
    let outcome = match measure(&bench) {
        Ok(outcome) => outcome,
        // Before its first result: there is still the record that it was tried.
        Err(error) if sys::interrupted() => {
            eprintln!("corecast-bench: interrupted: {error:#}");
            return finish(name, &bench, &[], &[], &[format!("interrupted: {error:#}")]);
        }
        Err(error) => return Err(error),
    };
    report::print_outcome(&outcome);
    finish(name, &bench, &[outcome], &[], &[])
}

fn finish_table(name: &str, bench: &Bench, measured: Measured) -> Result<ExitCode> {
    let Measured { outcomes, figures, failures } = measured;
    for outcome in &outcomes {
        report::print_outcome(outcome);
    }
    println!();
    print!("{}", figure_table::text(&figures));
    finish(name, bench, &outcomes, &figures, &failures)
}

/// Exit code 0 if everything due was reached and nothing was lost, 1 if not, 130 if somebody interrupted the run.
fn finish(
    name: &str,
    bench: &Bench,
    outcomes: &[Outcome],
    table: &[Figure],
    failures: &[String],
) -> Result<ExitCode> {
    let path = report::write(name, bench, outcomes, table, failures)?;
    println!("\nraw results: {}", path.display());
    let missed = table.iter().any(|row| !matches!(row.verdict(), Verdict::Ok | Verdict::Informative))
        || outcomes.iter().any(|outcome| !outcome.flaws().is_empty());
    Ok(ExitCode::from(match (sys::interrupted(), missed) {
        (true, _) => sys::INTERRUPTED_CODE as u8,
        (false, true) => 1,
        (false, false) => 0,
    }))
}
