//! `corecast consume`: the consumer's side of the star, on ordinary threads; shares nothing with the engine.
//!
//! Text in, consumer started, signals out. What a consumer is and does is the library's, `corecast-consumer`.

mod exec;
mod handlers;
mod page;
pub mod place;
pub mod settings;
mod webhook;

use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::Context;
use clap::Args;
use corecast_consumer::{Consumer, Metrics, Subscription};
use shards::config::LogFormat;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::logs;
use settings::Settings;

/// The flags of `corecast consume`, as text: a variable stands in for each that is absent.
#[derive(Debug, Default, Args)]
pub struct ConsumeArgs {
    /// Serve the users of this system: star, whose defaults are this command's own
    #[arg(long, value_name = "NAME", value_parser = ["star"])]
    preset: Option<String>,
    /// Redis, as redis://[USER[:PASSWORD]@]HOST[:PORT], unix:///PATH.sock or HOST:PORT [env: CORECAST_REDIS, REDIS_URL,
    /// REDIS_ADDR, REDIS_HOST with REDIS_PORT; REDIS_PASSWORD] [default: localhost:6379]
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// Redis channel to subscribe to [env: CORECAST_CHANNEL, CHANNEL_NAME] [default: broadcast.events]
    #[arg(long, value_name = "CHANNEL")]
    channel: Option<String>,
    /// Name of this consumer in logs and dead letters [env: CORECAST_SERVER_ID, SERVER_ID] [default: unknown-server]
    #[arg(long, value_name = "ID")]
    server_id: Option<String>,
    /// What to do with the events of a type, `*` for every type that has no other: TYPE=log, TYPE=exec:COMMAND (a shell
    /// gets the event as JSON on standard input; exit status 0 is success), TYPE=webhook:URL (POST; 2xx is success). Once
    /// per type [env: CORECAST_HANDLER, one a line] [default: *=log]
    #[arg(long, value_name = "TYPE=ACTION")]
    handler: Vec<String>,
    /// How long a command or a webhook may take [env: CORECAST_HANDLER_TIMEOUT] [default: 10s]
    #[arg(long, value_name = "DURATION")]
    handler_timeout: Option<String>,
    /// Events handled at once [env: CORECAST_WORKERS] [default: 4]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Events that wait for a worker [env: CORECAST_QUEUE] [default: 100]
    #[arg(long, value_name = "N")]
    queue: Option<String>,
    /// With a full queue: drop (counted and logged), or block (Redis isn't read meanwhile, and ends the connection beyond its
    /// client-output-buffer-limit) [env: CORECAST_WHEN_FULL] [default: drop]
    #[arg(long, value_name = "drop|block")]
    when_full: Option<String>,
    /// Attempts for an event, the first included [env: CORECAST_ATTEMPTS] [default: 3]
    #[arg(long, value_name = "N")]
    attempts: Option<String>,
    /// Longest wait before the second attempt; it doubles with each, and the wait is a random part of it
    /// [env: CORECAST_BACKOFF] [default: 100ms]
    #[arg(long, value_name = "DURATION")]
    backoff: Option<String>,
    /// Longest wait before any attempt [env: CORECAST_BACKOFF_MAX] [default: 10s]
    #[arg(long, value_name = "DURATION")]
    backoff_max: Option<String>,
    /// Where events go whose last attempt failed: log, file:PATH (JSON lines) or stream:KEY (of the same Redis); see
    /// `corecast dead-letters` [env: CORECAST_DEAD_LETTERS] [default: log]
    #[arg(long, value_name = "PLACE")]
    dead_letters: Option<String>,
    /// After SIGINT or SIGTERM, time for the queue and pending retries; what is left becomes dead letters
    /// [env: CORECAST_DRAIN] [default: 30s]
    #[arg(long, value_name = "DURATION")]
    drain: Option<String>,
    /// Serve /metrics (Prometheus) and /healthz here; port 0 takes a free one, which is logged [env: CORECAST_METRICS]
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Log lines as json or text [env: CORECAST_LOG_FORMAT] [default: json]
    #[arg(long, value_name = "json|text")]
    log_format: Option<String>,
    /// error, warn, info, debug, trace or off [env: CORECAST_LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Help's last part.
pub const EXAMPLES: &str = "\
An event is {\"id\": UUID, \"type\", \"source\", \"timestamp\": ISO 8601, \"payload\": {}}. Events are handled concurrently, in no
particular order; one that failed comes again, so a handler may see it twice.

How many workers, how long a queue:
  load                       workers   queue      why
  little (development)       2-4       50-100     a short queue shows a slow handler early
  steady, medium             4-8       100-300    about a second's events ride out a slow second
  steady, high               8-16      500-1000   more than cores only for handlers that wait
  bursts                     4-8       1000+      the queue takes the burst, the workers the average
Workers needed are about events a second times seconds a handler takes. `dropped` grows: a longer queue for bursts, else
more workers. `queued` stays high: handlers are slower than events come.

Examples:
  corecast consume                                              logs every event of broadcast.events
  corecast consume --handler 'demo.message=exec:./greet.sh' --handler '*=log'
  corecast consume --handler 'order.paid=webhook:http://127.0.0.1:9000/paid' --dead-letters file:dead.jsonl
  SERVER_ID=server-1 REDIS_ADDR=redis:6379 corecast consume --workers 8 --queue 500 --metrics :9100

Exit codes: 0 ended by a signal with the queue drained, 1 failed at run time, 2 usage, 69 no place for dead
letters, 73 can't bind --metrics, 77 no permission, 78 a variable makes no sense, 130 a second signal.";

/// As a shell has it for a program that SIGINT ended.
const SECOND_SIGNAL: i32 = 130;

/// Consumes until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting: flags or variables without sense, an address that can't be bound, a file that can't
/// be written.
pub fn run(args: &ConsumeArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(args)?;
    let constants = match settings.log_format {
        LogFormat::Json => vec![
            ("channel", settings.options.channel.clone().into()),
            ("server_id", settings.options.server_id.clone().into()),
        ],
        // Whoever reads along has named them.
        LogFormat::Text => Vec::new(),
    };
    let _logs = logs::start_lossless(settings.log_format, settings.log_level, constants)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let dead_letters = settings.dead_letters.keeper(&settings.redis)?;
    let listener = settings.metrics.map(|address| {
        TcpListener::bind(address)
            .with_context(|| format!("can't bind --metrics {address}: name a free port, or 0"))
    });
    let listener = listener.transpose()?;
    // Before any thread starts, so that none of them is interrupted.
    let signals = listen_for_signals()?;
    let kinds = settings.registry.kinds().join(" ");
    let consumer = Consumer::start(settings.options.clone(), settings.registry, dead_letters);
    let consumer = Arc::new(consumer.context("can't start the workers")?);
    let subscription = Subscription::start(settings.redis.clone(), Arc::clone(&consumer), settings.when_full);
    let subscription = subscription.context("can't start the subscriber")?;
    if let Some(listener) = listener {
        let address = page::serve(listener, Arc::clone(&consumer), subscription.up_probe())?;
        tracing::info!(url = format!("http://{address}/metrics"), "metrics");
    }
    let options = consumer.options();
    tracing::info!(
        redis = %settings.redis,
        handlers = kinds,
        workers = options.workers,
        queue = options.queue,
        dead_letters = %settings.dead_letters,
        "consuming"
    );
    signals.recv().context("the thread that waits for signals has ended")?;
    tracing::info!(queued = consumer.metrics().queued, "draining; a second signal ends at once");
    subscription.stop();
    say_drained(&consumer.stop());
    exec::kill_all();
    Ok(ExitCode::SUCCESS)
}

/// One thread turns the first signal into a message; a second one ends the process.
fn listen_for_signals() -> anyhow::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("can't listen for signals")?;
    let (sender, receiver) = channel();
    let listen = move || {
        let mut signals = signals.forever();
        signals.next();
        // Nobody waits any more only when the process is ending already.
        let _ = sender.send(());
        signals.next();
        exec::kill_all();
        std::process::exit(SECOND_SIGNAL);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen).context("can't start a thread")?;
    Ok(receiver)
}

fn say_drained(metrics: &Metrics) {
    tracing::info!(
        processed = metrics.processed,
        dropped = metrics.dropped,
        queued = metrics.queued,
        retried = metrics.retried,
        dead = metrics.dead,
        invalid = metrics.invalid,
        unknown = metrics.unknown_total(),
        "drained"
    );
}
