//! What one message costs, in nanoseconds of one core: the best of 7 runs of a second's tenth, and their spread.
//!
//!     cargo run --release -p domains --example admit_cost

use std::hint::black_box;
use std::time::{Duration, Instant};

use domains::{BUILT_IN, Registry, SchemaDomain};

const RUNS: usize = 7;
const RUN: Duration = Duration::from_millis(100);

fn main() {
    let mut registry = Registry::built_in(&BUILT_IN).expect("built-in domains don't conflict");
    let sensors = include_str!("../../deploy/domains/sensors.json");
    let sensors = SchemaDomain::parse(sensors, "sensors.json").expect("the example is good");
    registry.register(Box::new(sensors)).expect("its type is its own");

    let chat = format!(r#"{{"type":"message","room":"lobby","data":"{}"}}"#, "a".repeat(1 << 20));
    for (name, text) in [
        (
            "price_update",
            r#"{"type":"price_update","instrument":"BTC_USDT","price":60214.30,"ts":1710000000}"#,
        ),
        (
            "price_update refused",
            r#"{"type":"price_update","instrument":"BTC_USDT","price":"60214.30","ts":1}"#,
        ),
        ("message", r#"{"type":"message","room":"lobby","data":{"text":"hello"}}"#),
        ("message of 1 MiB", &chat),
        (
            "sensor_reading (schema)",
            r#"{"type":"sensor_reading","site":"plant-7","sensor":"t-1","at":"2026-01-01T00:00:00Z","values":[{"quantity":"temperature","value":21.50}]}"#,
        ),
        (
            "sensor_reading refused",
            r#"{"type":"sensor_reading","site":"plant-7","sensor":"t-1","at":"2026-01-01T00:00:00Z","values":[{"quantity":"wind","value":21.50}]}"#,
        ),
    ] {
        let mut nanos: Vec<f64> = (0..RUNS).map(|_| measure(&registry, text.as_bytes())).collect();
        nanos.sort_by(f64::total_cmp);
        let (best, worst) = (nanos[0], nanos[RUNS - 1]);
        println!("{name:24} {:>8} bytes  best {best:>9.0} ns  worst {worst:>9.0} ns", text.len());
    }
}

/// Nanoseconds per call.
fn measure(registry: &Registry, text: &[u8]) -> f64 {
    let began = Instant::now();
    let mut calls = 0u32;
    while began.elapsed() < RUN {
        for _ in 0..16 {
            // Either answer is dropped: what it allocated is part of its cost.
            drop(black_box(registry.admit(black_box(text))));
        }
        calls += 16;
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}
