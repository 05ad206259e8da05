//! One connection that sends by a schedule and hears itself: how long everybody else makes it wait.

use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use crate::dial::Dial;
use crate::stamp::{STAMP_BYTES, Stamp, blank_payload};
use crate::sys;
use crate::wire::{self, Event, FrameParser};

/// After the last one was sent, the rest is waited for this long.
const LINGER_NS: u64 = 2_000_000_000;

/// One message there and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    /// When it was due to be sent.
    pub intended_ns: u64,
    /// From then until it was back.
    pub took_ns: u64,
}

/// What an echo connection saw.
#[derive(Debug, Default)]
pub struct Echoes {
    /// In the order of their return.
    pub trips: Vec<RoundTrip>,
    /// Sent, and never heard.
    pub lost: u64,
    /// The thread ran in the real-time class, so that the receivers on its core did not add to its waiting.
    pub ran_first: bool,
}

/// Sends a message each `interval_ns` (open loop) until `stop`, and times the answers.
pub fn run(address: SocketAddrV4, path: &str, interval_ns: u64, stop: &AtomicBool) -> Result<Echoes> {
    let dial = Dial::to(address, 126, 1);
    let mut opened = None;
    let target = path.to_owned();
    let dialed = dial.open(1, move |_| target.clone(), |one| opened = Some(one))?;
    let Some(mut one) = opened else {
        bail!("the echo connection ({path}) failed: {}", dialed.errors.join("; "));
    };
    let mut echoes = Echoes { ran_first: sys::run_first().is_ok(), ..Echoes::default() };
    sys::sharpen_timers();
    let mut parser = FrameParser::default();
    let mut input = std::mem::take(&mut one.rest);
    let (mut buffer, mut frame) = (vec![0; 64 * 1024], Vec::new());
    let mut payload = blank_payload(STAMP_BYTES);
    let mut sequence = 0u32;
    let mut due_ns = sys::monotonic_ns() + interval_ns;
    let mut stopped_ns = None;
    loop {
        let now_ns = sys::monotonic_ns();
        if stopped_ns.is_none() && (stop.load(Ordering::Relaxed) || sys::interrupted()) {
            stopped_ns = Some(now_ns);
        }
        let heard = echoes.trips.len() as u64;
        let wait_ns = match stopped_ns {
            Some(since_ns) if heard == u64::from(sequence) || now_ns > since_ns + LINGER_NS => break,
            Some(_) => 1_000_000,
            None if now_ns >= due_ns => {
                Stamp { room: 0, sequence, intended_ns: due_ns }.write(&mut payload);
                frame.clear();
                wire::client_frame(wire::TEXT, &payload, &mut frame);
                one.stream.write_all(&frame).context("the server doesn't read the echo connection")?;
                sequence += 1;
                due_ns += interval_ns;
                continue;
            }
            None => due_ns - now_ns,
        };
        if sys::wait_readable(&one.stream, wait_ns) {
            match one.stream.read(&mut buffer) {
                Ok(0) => bail!("the server closed the echo connection"),
                Ok(bytes) => input.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the echo connection"),
            }
        }
        let now_ns = sys::monotonic_ns();
        parser.feed(&input, |event| {
            if let Event::Message { prefix, .. } = event
                && let Some(Stamp { intended_ns, .. }) = Stamp::read(prefix)
            {
                echoes.trips.push(RoundTrip { intended_ns, took_ns: now_ns.saturating_sub(intended_ns) });
            }
        })?;
        input.clear();
    }
    echoes.lost = u64::from(sequence).saturating_sub(echoes.trips.len() as u64);
    Ok(echoes)
}
