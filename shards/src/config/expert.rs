//! What only an experiment has a reason to move: numbers that were chosen by measuring, and that other machines may want
//! otherwise. `corecast tune experiment` tells.

use std::time::Duration;

use crate::limits::{BATCH_SENDS_MAX, NOTSENT_LOWAT_BYTES, PASS_SLICE};

/// See the module. The defaults are what corecast is tested and measured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expert {
    /// Flags of the ring that a shard's and the relay's runtime waits on. Default [`RingSetup::Defer`].
    pub ring_setup: RingSetup,
    /// Sends in one system call of the fan-out ring, and between two yields to the other tasks of the thread; 1 to
    /// [`BATCH_SENDS_LIMIT`](crate::limits::BATCH_SENDS_LIMIT), default [`BATCH_SENDS_MAX`]. Higher saves calls; lower lets
    /// newcomers and senders in earlier while a large room is sent to.
    pub batch_sends_max: usize,
    /// A batch that took longer is followed by ones of half its size, down to a sixteenth, until they take less than a
    /// third: so long others on the thread wait. 10us to 1s, default [`PASS_SLICE`]. Raise it where nobody but the room
    /// matters; lower it for echoes and handshakes during a broadcast.
    pub pass_slice: Duration,
    /// `TCP_NOTSENT_LOWAT` of the clients' sockets: unsent bytes that the kernel takes before it says that a socket is full.
    /// 1B to 1GiB, default [`NOTSENT_LOWAT_BYTES`]. Lower is less memory for slow readers, known to be slow earlier; higher
    /// saves wake-ups for bursts larger than it.
    pub notsent_lowat: usize,
    /// `SO_RCVBUF` of the clients' sockets, 1KiB to 1GiB; the kernel doubles it for its own use, and cuts it to
    /// `net.core.rmem_max` first. Default: the kernel adjusts it to each connection, which this ends.
    pub socket_receive_bytes: Option<usize>,
    /// The same for `SO_SNDBUF` and `net.core.wmem_max`.
    pub socket_send_bytes: Option<usize>,
    /// `SO_BUSY_POLL` of the clients' sockets: how long a read that finds nothing asks the network card's queue itself
    /// before it gives up. 0s (never, the default) to 10ms, in whole microseconds. Costs CPU; does nothing where the device
    /// has no queue to ask (loopback, most virtual ones). Needs CAP_NET_ADMIN.
    pub busy_poll: Duration,
    /// Whether the kernel may back the server's memory with transparent huge pages, as the host's
    /// `transparent_hugepage/enabled` says. Default false: small objects spread over them hold twice the memory (measured).
    /// True is for finding out whether that holds on another machine.
    pub huge_pages: bool,
}

/// See [`Expert::ring_setup`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RingSetup {
    /// SINGLE_ISSUER and DEFER_TASKRUN: completions are worked off where the shard waits, and nowhere else. Receiving is 17
    /// to 47 % cheaper so (measured).
    #[default]
    Defer,
    /// COOP_TASKRUN: at the next system call, whichever it is; no interrupt for it.
    Coop,
    /// No flags: at once, by interrupting the thread.
    Plain,
}

impl Default for Expert {
    fn default() -> Self {
        Self {
            ring_setup: RingSetup::Defer,
            batch_sends_max: BATCH_SENDS_MAX,
            pass_slice: PASS_SLICE,
            notsent_lowat: NOTSENT_LOWAT_BYTES as usize,
            socket_receive_bytes: None,
            socket_send_bytes: None,
            busy_poll: Duration::ZERO,
            huge_pages: false,
        }
    }
}
