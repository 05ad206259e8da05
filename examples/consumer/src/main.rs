//! Counts the orders of `order.paid` events: a handler of one's own, registered in one line.
//!
//! Start a Redis, `cargo run -p corecast-consumer-example`, and publish with `corecast publish --redis localhost:6379
//! --channel broadcast.events`; Ctrl-C ends it when everything in the queue is handled.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use corecast_consumer::{Consumer, Event, Handler, HandlerError, LogLetters, Options, Registry};
use corecast_consumer::{Subscription, WhenFull};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Adds up what was paid.
#[derive(Default)]
struct OrderPaid {
    cents: AtomicU64,
}

impl Handler for OrderPaid {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        let cents = event.payload().get("cents").and_then(|cents| cents.as_u64()).ok_or_else(|| {
            HandlerError::Permanent("payload.cents: due a whole number of cents".to_owned())
        })?;
        let total = self.cents.fetch_add(cents, Ordering::Relaxed) + cents;
        println!("{}: {cents} cents from {}, {total} in all", event.id(), event.source());
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut registry = Registry::new();
    registry.register("order.paid", OrderPaid::default());
    let consumer = Arc::new(Consumer::start(Options::default(), registry, LogLetters)?);
    let subscription = Subscription::start("localhost:6379".parse()?, Arc::clone(&consumer), WhenFull::Drop)?;
    signals.forever().next();
    subscription.stop();
    println!("{:?}", consumer.stop());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_without_an_amount_is_not_tried_again() {
        let event = r#"{"id":"550e8400-e29b-41d4-a716-446655440000","type":"order.paid","source":"shop",
            "timestamp":"2026-02-22T10:00:00Z","payload":{}}"#;
        let refused = OrderPaid::default().handle(&event.parse().unwrap());
        assert!(matches!(refused, Err(HandlerError::Permanent(_))));
    }
}
