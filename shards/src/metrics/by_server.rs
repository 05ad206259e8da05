//! Numbers of the relay that each Redis has of its own.

use std::fmt::Write as _;
use std::sync::OnceLock;

use super::{Family, Number, RelayMetrics, escaped, head};
use crate::limits::REDIS_TABLES_MAX;

/// One number per Redis; the label is its name as configured, `local` for the local broker. At most [`REDIS_TABLES_MAX`].
#[derive(Debug)]
pub struct ByServer {
    numbers: Box<[Number]>,
    names: OnceLock<Box<[String]>>,
}

impl Default for ByServer {
    fn default() -> Self {
        Self { numbers: (0..REDIS_TABLES_MAX).map(|_| Number::default()).collect(), names: OnceLock::new() }
    }
}

impl ByServer {
    fn name(&self, names: &[String]) {
        // Told again where two setups share numbers, as in tests: the first names stay.
        let _told_before = self.names.set(names.into());
    }

    /// The number of the server with this index.
    pub fn of(&self, server: usize) -> &Number {
        &self.numbers[server]
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.numbers.iter().map(Number::value).sum()
    }

    /// Each server's name and number, in order.
    pub fn by_name(&self) -> impl Iterator<Item = (&str, u64)> {
        let names = self.names.get().map_or([].as_slice(), |names| names);
        names.iter().map(String::as_str).zip(self.numbers.iter().map(Number::value))
    }
}

impl Family for ByServer {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]) {
        head(page, name, help, kind);
        for (server, value) in of.iter().flat_map(|by| by.by_name()) {
            let _ = writeln!(page, "{name}{{server=\"{}\"}} {value}", escaped(server));
        }
    }
}

impl RelayMetrics {
    /// Says once how the servers are called, in order.
    pub fn name_servers(&self, names: &[String]) {
        let Self { broker_up, broker_reconnects, broker_attempts_failed, broker_breaks, .. } = self;
        let Self { publishes_sent, streams_up, stream_breaks, .. } = self;
        let of_links = [broker_up, broker_reconnects, broker_attempts_failed, broker_breaks, publishes_sent];
        for by in of_links.into_iter().chain([streams_up, stream_breaks]) {
            by.name(names);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::{Identity, Metrics};

    #[test]
    fn each_server_has_its_line_and_one_that_nobody_configured_has_none() {
        let metrics = Metrics::new(1, Identity::default(), false);
        metrics.relay.name_servers(&["orders".to_owned(), "chat".to_owned()]);
        metrics.relay.broker_up.of(1).set(1);
        let page = metrics.page();
        let told: Vec<_> = page.lines().filter(|line| line.starts_with("corecast_broker_up")).collect();
        assert_eq!(
            told,
            ["corecast_broker_up{server=\"orders\"} 0", "corecast_broker_up{server=\"chat\"} 1"]
        );
        assert_eq!(metrics.relay.broker_up.total(), 1);
    }
}
