//! `corecast serve`: starts the engine and waits for its end.

use std::process::ExitCode;

use shards::config::{Config, Warning};

/// Serves as `config` says until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting: an address that can't be bound, a forbidden driver.
pub fn run(config: Config, warnings: Vec<Warning>) -> anyhow::Result<ExitCode> {
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    anyhow::bail!("cannot serve on {:?}: this build has no engine", config.listen)
}
