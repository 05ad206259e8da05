//! Runs the two clients; the whole command line takes this file's place.

mod client;
mod publish;
mod redis;
mod subscribe;
mod tally;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    Publish(publish::PublishArgs),
    Subscribe(subscribe::SubscribeArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Publish(args) => publish::run(args),
        Command::Subscribe(args) => subscribe::run(args),
    }
}
