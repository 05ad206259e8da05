//! The mock price feed: prices that walk at random, through one WebSocket of an ingestor.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tungstenite::handshake::client::Request;
use tungstenite::{Error, Message, WebSocket};

use super::PublishArgs;
use crate::client::{Target, read_api_key};
use crate::connection::{self, CLOSE_WAIT, End, RECONNECT_STEADY, STOP_CHECK, full_jitter, is_time_out};
use crate::dialect::Kind;
use crate::exit;
use crate::output::complain;
use crate::preset::Preset;
use crate::random::Random;
use crate::redis::TlsArgs;
use crate::signals;

/// Largest step of a price, as a part of it: a tenth of a percent either way.
const STEP_MAX: f64 = 0.001;
/// Updates in a row that may leave before what the server says is looked at.
const UPDATES_BATCH_MAX: u64 = 64;

#[derive(Serialize)]
struct PriceUpdate<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    instrument: &'a str,
    price: f64,
    ts: u64,
}

/// Sends prices until stopped, until `--count` are sent, or until the server refuses for good.
///
/// Returns exit code 1 if the server answered anything with an error.
///
/// # Errors
/// A connection that can't be opened the first time, or is refused for good later.
pub fn run(args: &PublishArgs) -> anyhow::Result<ExitCode> {
    let target = match (&args.url, args.preset_name()) {
        (None, Some(name)) => Preset::load(name, None, &TlsArgs::default())?.target()?,
        (url, _) => Target::parse(url.as_deref().unwrap_or("127.0.0.1:8080"))?,
    };
    let api_key = args.api_key_file.as_deref().map(read_api_key).transpose()?;
    let mut feed = Feed {
        request: connection::request(&target.socket_url("/ws/ingest", &[]), api_key.as_deref())?,
        target,
        prices: args.instruments.iter().map(|name| Price::new(name)).collect(),
        random: Random::new()?,
        interval: args.interval(),
        count: args.count.unwrap_or(u64::MAX),
        quiet: args.quiet,
        stop: signals::stop_flag()?,
        sent: 0,
        errors: 0,
        connections: 0,
    };
    let began_at = Instant::now();
    let ended = feed.run();
    complain!(
        "sent {} prices over {} connection(s) in {:.1} s; the server answered {} error(s)",
        feed.sent,
        feed.connections,
        began_at.elapsed().as_secs_f64(),
        feed.errors
    );
    ended?;
    Ok(ExitCode::from(if feed.errors > 0 { exit::FAILED } else { 0 }))
}

struct Feed {
    target: Target,
    request: Request,
    prices: Vec<Price>,
    random: Random,
    interval: Duration,
    count: u64,
    quiet: bool,
    stop: Arc<AtomicBool>,
    sent: u64,
    errors: u64,
    connections: u64,
}

impl Feed {
    fn run(&mut self) -> Result<(), exit::Failure> {
        let mut attempt = 0;
        loop {
            let opened_at = Instant::now();
            let end = match connection::open(&self.target, self.request.clone()) {
                Ok(socket) => {
                    self.connections += 1;
                    self.feed(socket)
                }
                Err(end) => end,
            };
            if matches!(end, End::Stopped) || self.stopped() {
                return Ok(());
            }
            if self.connections == 0 || !end.retry() {
                return Err(exit::Failure::new(end.code().max(exit::FAILED), end.sentence()));
            }
            if opened_at.elapsed() >= RECONNECT_STEADY {
                attempt = 0;
            }
            let wait = full_jitter(attempt);
            attempt = attempt.saturating_add(1);
            complain!(
                "corecast publish: {} [connecting again in {:.1} s]",
                end.sentence(),
                wait.as_secs_f64()
            );
            self.pause(wait);
        }
    }

    /// Sends until something ends it. What was due while there was no connection is not made up for.
    fn feed(&mut self, mut socket: WebSocket<std::net::TcpStream>) -> End {
        let began_at = Instant::now();
        let mut sent: u64 = 0;
        while !self.stopped() && self.sent < self.count {
            let wait = super::due(self.interval, sent).saturating_sub(began_at.elapsed());
            if wait.is_zero() {
                if let Err(error) = self.send_next(&mut socket) {
                    return End::Broken(error);
                }
                sent += 1;
                if !sent.is_multiple_of(UPDATES_BATCH_MAX) {
                    continue;
                }
            }
            if let Err(end) = self.listen(&mut socket, wait) {
                return end;
            }
        }
        self.leave(socket)
    }

    fn send_next(&mut self, socket: &mut WebSocket<std::net::TcpStream>) -> Result<(), Error> {
        let index = (self.sent % self.prices.len() as u64) as usize;
        let update = self.prices[index].step(self.random.unit(), SystemTime::now());
        socket.send(Message::from(update.as_str()))?;
        self.sent += 1;
        if !self.quiet && writeln!(io::stdout(), "{update}").is_err() {
            // The reader of our output is gone; what was asked for was to publish.
            self.quiet = true;
        }
        Ok(())
    }

    /// Takes what the server says, for `wait` at most.
    fn listen(&mut self, socket: &mut WebSocket<std::net::TcpStream>, wait: Duration) -> Result<(), End> {
        // A time-out of zero would be none.
        let wait = wait.clamp(Duration::from_millis(1), STOP_CHECK);
        let bounded = socket.get_ref().set_read_timeout(Some(wait));
        bounded.map_err(|error| End::Broken(Error::Io(error)))?;
        match socket.read() {
            Ok(Message::Close(frame)) => Err(End::Closed(frame)),
            Ok(message) => {
                self.note(&message);
                Ok(())
            }
            Err(Error::Io(error)) if is_time_out(&error) => Ok(()),
            Err(error) => Err(End::Broken(error)),
        }
    }

    fn note(&mut self, message: &Message) {
        let Message::Text(text) = message else { return };
        if Kind::of(text) == Kind::Error {
            self.errors += 1;
        }
        complain!("corecast publish: the server answered {text}");
    }

    /// Says goodbye and hears what the server still has to say about the last updates.
    fn leave(&mut self, mut socket: WebSocket<std::net::TcpStream>) -> End {
        let deadline = Instant::now() + CLOSE_WAIT;
        if socket.close(None).is_err() {
            return End::Stopped;
        }
        while Instant::now() < deadline && self.listen(&mut socket, STOP_CHECK).is_ok() {}
        End::Stopped
    }

    fn pause(&self, wait: Duration) {
        let deadline = Instant::now() + wait;
        while !self.stopped() && Instant::now() < deadline {
            thread::sleep(deadline.saturating_duration_since(Instant::now()).min(STOP_CHECK));
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One instrument's price.
struct Price {
    instrument: String,
    value: f64,
}

impl Price {
    /// Begins near what the instrument once cost; unknown ones begin at 100.
    fn new(instrument: &str) -> Self {
        let value = match instrument.split(['_', '-', '/']).next() {
            Some("BTC") => 60_000.0,
            Some("ETH") => 3_000.0,
            Some("SOL") => 150.0,
            _ => 100.0,
        };
        Self { instrument: instrument.to_owned(), value }
    }

    /// Takes one step, of a size by `unit` (0 to 1), and tells the price as the backbone's event.
    fn step(&mut self, unit: f64, now: SystemTime) -> String {
        self.value *= 1.0 + STEP_MAX * (2.0 * unit - 1.0);
        // Cents; a price never reaches nothing.
        let price = ((self.value * 100.0).round() / 100.0).max(0.01);
        let ts = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let update = PriceUpdate { kind: "price_update", instrument: &self.instrument, price, ts };
        serde_json::to_string(&update).expect("a string, a finite number and a whole one are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_walks_in_small_steps_and_is_told_in_cents() {
        let mut price = Price::new("BTC_USDT");
        let now = UNIX_EPOCH + Duration::from_secs(1_710_000_000);
        assert_eq!(
            price.step(0.5, now),
            r#"{"type":"price_update","instrument":"BTC_USDT","price":60000.0,"ts":1710000000}"#
        );
        price.step(1.0, now);
        assert!((60_059.0..60_061.0).contains(&price.value), "{}", price.value);
        let mut worthless = Price { instrument: "X".to_owned(), value: 1e-9 };
        assert!(worthless.step(0.0, now).contains("\"price\":0.01"));
    }
}
