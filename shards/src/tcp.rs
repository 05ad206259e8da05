//! Why a socket takes no more, by what the kernel says of its TCP: its reader, or the network on the way to it.
//!
//! A reader that doesn't read closes its window: nothing is on its way, or what is on its way is as much as it allowed. On
//! a bad network segments are on their way, and lost or late. The kernel tells both apart (`struct tcp_info` of
//! `linux/tcp.h`), and adds up how long it waited for what.

use std::time::Duration;

use crate::metrics::Cause;

/// What the kernel says of one connection, as far as it tells why sending stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tcp {
    /// Larger than 2 while the kernel makes good a loss (TCP_CA_Recovery, TCP_CA_Loss).
    pub congestion_state: u8,
    /// How often in a row the oldest segment was sent again because nothing came back.
    pub retransmits: u8,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Segments on their way.
    pub unacked: u32,
    /// Of these, held for lost.
    pub lost: u32,
    /// Segments sent again since the connection began.
    pub retransmitted: u32,
    /// Smoothed time of a round trip.
    pub round_trip: Duration,
    /// Bytes that wait in the kernel and were never sent.
    pub unsent_bytes: u32,
    /// Time with anything to send.
    pub busy: Duration,
    /// Of it, the time in which the peer's window was the limit.
    pub window_limited: Duration,
    /// Of it, the time in which our own buffer was the limit.
    pub buffer_limited: Duration,
    /// The peer's window, in bytes; `None` before Linux 5.4.
    pub window_bytes: Option<u32>,
}

impl Tcp {
    /// Takes `info` as the kernel wrote it: newer ones write more, older ones less. `None` where it is too short to tell.
    ///
    /// Source: `include/uapi/linux/tcp.h`; offsets never change, fields are added at the end.
    pub fn read(info: &[u8]) -> Option<Self> {
        let micros = |at| long(info, at).map_or(Duration::ZERO, Duration::from_micros);
        Some(Self {
            congestion_state: *info.get(1)?,
            retransmits: *info.get(2)?,
            segment_bytes: word(info, 16)?,
            unacked: word(info, 24)?,
            lost: word(info, 32)?,
            round_trip: Duration::from_micros(word(info, 68)?.into()),
            retransmitted: word(info, 100)?,
            // Of Linux 4.6, and the times of 4.10.
            unsent_bytes: word(info, 144).unwrap_or(0),
            busy: micros(168),
            window_limited: micros(176),
            buffer_limited: micros(184),
            window_bytes: word(info, 228),
        })
    }

    /// Who keeps a socket that takes no more from taking more.
    ///
    /// What is so now comes before what was so over the connection's life.
    pub fn cause(&self) -> Cause {
        let waits_for_window = self.unacked == 0 && self.unsent_bytes > 0;
        let is_window_closed = self.window_bytes.is_some_and(|window| window < self.segment_bytes);
        let is_losing = self.retransmits > 0 || self.lost > 0 || self.congestion_state > CONGESTION_STATE_CWR;
        if waits_for_window || is_window_closed {
            Cause::Reader
        } else if is_losing {
            Cause::Network
        } else if !self.busy.is_zero() && self.window_limited >= self.busy / 2 {
            Cause::Reader
        } else if self.unacked > 0 {
            Cause::Network
        } else {
            Cause::Unknown
        }
    }
}

/// A stalled connection, for whoever asks why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slowest {
    /// Whose it is.
    pub shard: u16,
    /// Since its socket last took bytes.
    pub stuck: Duration,
    /// Since it was last at the head of all its rooms.
    pub behind: Duration,
    /// Bytes of publications that it is owed.
    pub behind_bytes: u64,
    /// What the kernel says; `None` where it says nothing.
    pub tcp: Option<Tcp>,
}

/// Sending was slowed down without a loss; what is above it is a loss.
const CONGESTION_STATE_CWR: u8 = 2;

fn word(info: &[u8], at: usize) -> Option<u32> {
    let octets = info.get(at..at + 4)?;
    octets.try_into().ok().map(u32::from_ne_bytes)
}

fn long(info: &[u8], at: usize) -> Option<u64> {
    let octets = info.get(at..at + 8)?;
    octets.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection on Ethernet whose reader keeps up.
    fn flowing() -> Tcp {
        Tcp { segment_bytes: 1448, window_bytes: Some(65_535), ..Tcp::default() }
    }

    #[test]
    fn a_closed_window_is_the_readers() {
        let closed = Tcp { window_bytes: Some(0), unsent_bytes: 20_000, ..flowing() };
        assert_eq!(closed.cause(), Cause::Reader);
        let almost = Tcp { window_bytes: Some(1447), unacked: 1, ..flowing() };
        assert_eq!(almost.cause(), Cause::Reader);
        // An older kernel does not say how large the window is, but nothing else keeps all of it back.
        let untold = Tcp { window_bytes: None, unsent_bytes: 1, ..flowing() };
        assert_eq!(untold.cause(), Cause::Reader);
    }

    #[test]
    fn what_a_reader_has_no_space_for_is_sent_again_and_no_fault_of_the_network() {
        let probed = Tcp { window_bytes: Some(0), unacked: 1, retransmits: 4, ..flowing() };
        assert_eq!(probed.cause(), Cause::Reader);
    }

    #[test]
    fn losses_behind_an_open_window_are_the_networks() {
        for losing in [
            Tcp { retransmits: 1, ..flowing() },
            Tcp { lost: 3, ..flowing() },
            Tcp { congestion_state: 3, ..flowing() },
            Tcp { congestion_state: 4, ..flowing() },
        ] {
            let losing = Tcp { unacked: 10, unsent_bytes: 20_000, ..losing };
            assert_eq!(losing.cause(), Cause::Network, "{losing:?}");
        }
    }

    #[test]
    fn segments_on_their_way_through_an_open_window_are_late_by_the_network() {
        let late = Tcp { unacked: 10, unsent_bytes: 20_000, busy: Duration::from_secs(9), ..flowing() };
        assert_eq!(late.cause(), Cause::Network);
        let by_own_buffer = Tcp { buffer_limited: Duration::from_secs(8), ..late };
        assert_eq!(by_own_buffer.cause(), Cause::Network);
    }

    #[test]
    fn who_was_mostly_waited_for_by_its_window_is_a_slow_reader() {
        let opened = Tcp { unacked: 3, busy: Duration::from_secs(10), ..flowing() };
        let mostly = Tcp { window_limited: Duration::from_secs(5), ..opened };
        assert_eq!(mostly.cause(), Cause::Reader);
        let seldom = Tcp { window_limited: Duration::from_secs(4), ..opened };
        assert_eq!(seldom.cause(), Cause::Network);
    }

    #[test]
    fn of_who_waits_for_nothing_nobody_knows() {
        assert_eq!(flowing().cause(), Cause::Unknown);
        assert_eq!(Tcp::default().cause(), Cause::Unknown);
    }

    #[test]
    fn every_field_is_read_where_the_kernel_writes_it() {
        // Each word holds its own offset.
        let info: Vec<u8> = (0..60).flat_map(|word: u32| (word * 4).to_ne_bytes()).collect();
        let tcp = Tcp::read(&info).expect("long enough");
        assert_eq!((tcp.segment_bytes, tcp.unacked, tcp.lost), (16, 24, 32));
        assert_eq!((tcp.round_trip, tcp.retransmitted), (Duration::from_micros(68), 100));
        assert_eq!((tcp.unsent_bytes, tcp.window_bytes), (144, Some(228)));
        let long = |at: u64| match cfg!(target_endian = "little") {
            true => at + ((at + 4) << 32),
            false => (at << 32) + at + 4,
        };
        let times = [tcp.busy, tcp.window_limited, tcp.buffer_limited].map(|time| time.as_micros() as u64);
        assert_eq!(times, [168, 176, 184].map(long));
        let [_, congestion_state, retransmits, ..] = [9u8, 3, 7, 0];
        let info = [&[9, congestion_state, retransmits], &info[3..]].concat();
        let tcp = Tcp::read(&info).expect("long enough");
        assert_eq!((tcp.congestion_state, tcp.retransmits), (3, 7));
    }

    #[test]
    fn an_older_kernel_says_less_and_too_little_is_nothing() {
        let info = vec![1; 104];
        let tcp = Tcp::read(&info).expect("as of Linux 2.6");
        assert_eq!((tcp.window_bytes, tcp.busy, tcp.unsent_bytes), (None, Duration::ZERO, 0));
        assert_eq!(Tcp::read(&info[..103]), None);
        assert_eq!(Tcp::read(&[]), None);
    }
}
