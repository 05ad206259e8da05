//! What the server counts: declared once, in two tables, and written as Prometheus text.
//!
//! Each number has one writer (its shard, the relay, or the main thread), so counting is a plain load and store, relaxed:
//! no locked instruction on a shard. Readers see each number on its own, not a moment of all of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::close::CloseReason;
use crate::limits::TABLES_MAX;

mod by_server;

pub use by_server::ByServer;

/// A number with one writer. Counters only grow; gauges are `set`, or grow and shrink by `add` and `sub`.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds `n`. Only the owner may call it: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes `n` off a gauge; same rule as [`add`](Self::add).
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Sets a gauge; same rule as [`add`](Self::add).
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The number now; any thread.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Classic Prometheus buckets for durations, in seconds (FIELD: .0001 to 2.5).
const BUCKETS_SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Durations in [`BUCKETS_SECONDS`], with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Number; BUCKETS_SECONDS.len()],
    count: Number,
    sum_nanos: Number,
}

impl Histogram {
    /// Counts `duration` `times` times; same rule as [`Number::add`].
    pub fn record(&self, duration: Duration, times: u64) {
        let seconds = duration.as_secs_f64();
        if let Some(bucket) = BUCKETS_SECONDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket].add(times);
        }
        self.count.add(times);
        self.sum_nanos.add((duration.as_nanos() as u64).saturating_mul(times));
    }
}

/// The values of a label, each with its index and its name.
pub trait Label: Copy + 'static {
    /// Name of the label.
    const KEY: &'static str = "reason";
    /// All values; a value's position is its index.
    const ALL: &'static [Self];
    /// Position in [`ALL`](Self::ALL).
    fn index(self) -> usize;
    /// The label's value on the page.
    fn label(self) -> &'static str;
}

/// One number per value of a label.
#[derive(Debug)]
pub struct By<L: Label> {
    numbers: Box<[Number]>,
    label: std::marker::PhantomData<fn(L)>,
}

impl<L: Label> Default for By<L> {
    fn default() -> Self {
        Self { numbers: L::ALL.iter().map(|_| Number::default()).collect(), label: std::marker::PhantomData }
    }
}

impl<L: Label> By<L> {
    /// Adds `n` to the number of `value`; same rule as [`Number::add`].
    pub fn add(&self, value: L, n: u64) {
        self.numbers[value.index()].add(n);
    }

    /// The number of `value`.
    pub fn value(&self, value: L) -> u64 {
        self.numbers[value.index()].value()
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.numbers.iter().map(Number::value).sum()
    }
}

/// Time by the values of a label: nanoseconds here, seconds on the page.
#[derive(Debug)]
pub struct SecondsBy<L: Label>(By<L>);

impl<L: Label> Default for SecondsBy<L> {
    fn default() -> Self {
        Self(By::default())
    }
}

impl<L: Label> SecondsBy<L> {
    /// Adds nanoseconds to the time of `value`; same rule as [`Number::add`].
    pub fn add(&self, value: L, nanos: u64) {
        self.0.add(value, nanos);
    }

    /// The time of `value`, in nanoseconds.
    pub fn nanos(&self, value: L) -> u64 {
        self.0.value(value)
    }

    /// The time of `value`, in seconds.
    pub fn seconds(&self, value: L) -> f64 {
        self.nanos(value) as f64 / 1e9
    }

    /// All of them together, in nanoseconds.
    pub fn total(&self) -> u64 {
        self.0.total()
    }
}

/// How a publication came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// A client said it, and it did not go through a source.
    Client,
    /// It was posted, and did not go through a source.
    Http,
    /// Through the source of this index in [`Config::sources`](crate::config::Config::sources).
    Source(usize),
}

/// One number per way by which publications come in; the label `source` is the source's `redis`, as configured, or `client` or
/// `http`; a source has its server's name beside it. As many as there are sources, at most [`TABLES_MAX`], and two.
#[derive(Debug)]
pub struct ByVia {
    /// Client, HTTP, then the sources.
    numbers: Box<[Number]>,
    sources: OnceLock<Box<[SourceName]>>,
}

/// What the page calls a source.
#[derive(Debug, Clone)]
pub struct SourceName {
    /// Its `redis`, as configured.
    pub source: String,
    /// Its server; empty with the local broker.
    pub server: String,
}

impl Default for ByVia {
    fn default() -> Self {
        Self { numbers: (0..TABLES_MAX + 2).map(|_| Number::default()).collect(), sources: OnceLock::new() }
    }
}

impl ByVia {
    /// Says once how the sources are called, in order; those of one name and server are told together.
    pub fn name_sources(&self, names: impl Iterator<Item = SourceName>) {
        // Told again where two setups share numbers, as in tests: the first names stay.
        let _told_before = self.sources.set(names.collect());
    }

    /// Adds `n`; same rule as [`Number::add`].
    pub fn add(&self, via: Via, n: u64) {
        let index = match via {
            Via::Client => 0,
            Via::Http => 1,
            Via::Source(index) => 2 + index,
        };
        self.numbers[index].add(n);
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.numbers.iter().map(Number::value).sum()
    }

    /// The number of each name, whatever its server, the nameless left out.
    pub fn by_name(&self) -> BTreeMap<&str, u64> {
        let mut by_name = BTreeMap::new();
        for ((name, _), n) in self.by_name_and_server() {
            *by_name.entry(name).or_default() += n;
        }
        by_name
    }

    /// The number of all sources of a server.
    pub fn of_server(&self, server: &str) -> u64 {
        self.by_name_and_server().into_iter().filter(|((_, of), _)| *of == server).map(|(_, n)| n).sum()
    }

    fn by_name_and_server(&self) -> BTreeMap<(&str, &str), u64> {
        let sources = self.sources.get().map_or([].as_slice(), |sources| sources);
        let sources = sources.iter().map(|name| (name.source.as_str(), name.server.as_str()));
        let mut by_name = BTreeMap::new();
        for (name, number) in [("client", ""), ("http", "")].into_iter().chain(sources).zip(&self.numbers) {
            *by_name.entry(name).or_default() += number.value();
        }
        by_name
    }
}

/// An enumeration that is a metric's label: variant, name on the page.
macro_rules! label {
    ($(#[$meta:meta])* $name:ident as $key:literal { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl Label for $name {
            const KEY: &'static str = $key;
            const ALL: &'static [Self] = &[$(Self::$variant,)+];
            fn index(self) -> usize { self as usize }
            fn label(self) -> &'static str { match self { $(Self::$variant => $text,)+ } }
        }
    };
}

label! {
    /// Why a subscription did not get a publication that its room on the shard had.
    DropReason as "reason" {
        /// `drop-oldest` moved the cursor on.
        DropOldest = "drop_oldest",
        /// The connection ended, for whatever reason, with publications unsent.
        Closed = "closed",
        /// Owed to a connection that left the room.
        Left = "left",
        /// Longer than a frame once it is written in the connection's dialect; an error frame took its place.
        TooLong = "too_long",
    }
}

label! {
    /// Who keeps a slow connection's socket from taking more.
    Cause as "cause" {
        /// Its peer's window is closed, or was most of the time: it doesn't read.
        Reader = "reader",
        /// Its window is open, and segments are lost or on their way.
        Network = "network",
        /// The kernel says nothing of it, or nothing that tells.
        Unknown = "unknown",
    }
}

label! {
    /// Why publications never reached a room on a shard.
    GapReason as "reason" {
        /// The shard's ring and spill were full and the log could not hold them until there was space.
        ShardOverload = "shard_overload",
        /// The subscription to the broker was broken; how many were missed is unknown, so each room touched counts one.
        Broker = "broker",
        /// The room's stream did not hold them any more when they were to be read.
        Trimmed = "trimmed",
        /// The entry of the room's stream was longer than a publication may be.
        TooBig = "too_big",
    }
}

label! {
    /// What a newcomer that asked for a room's past got.
    Recovery as "outcome" {
        /// It came back, and got everything that it had missed.
        Whole = "whole",
        /// It came back, and something that it had missed is not there any more.
        Lost = "lost",
        /// It was not there before, and got what the log held.
        Newcomer = "newcomer",
    }
}

label! {
    /// What became of a publication that was to be appended to a stream.
    AppendFate as "outcome" {
        /// Redis has it.
        Appended = "appended",
        /// It is in no stream.
        Refused = "refused",
        /// The connection broke before the answer.
        Unknown = "unknown",
    }
}

label! {
    /// What became of a reading of a stream's past.
    RecallFate as "outcome" {
        /// It brought all that was wanted.
        Whole = "whole",
        /// It brought what there was, or as much as one client is given.
        Part = "part",
        /// Nothing certain.
        Nothing = "nothing",
    }
}

label! {
    /// Why a publication was refused before it had a place in a room.
    RefuseReason as "reason" {
        /// Larger than `PAYLOAD_BYTES_MAX`, by itself or in its envelope.
        TooBig = "too_big",
        /// Too much is on its way to Redis already.
        BrokerBacklog = "broker_backlog",
        /// Redis answered with an error.
        BrokerError = "broker_error",
        /// The channel belongs to no room (its name is empty, too long or holds control characters), or to one that has only
        /// the entries of a stream.
        BadRoom = "bad_room",
        /// Redis is away, and the room has only what its stream has.
        BrokerAway = "broker_away",
    }
}

label! {
    /// Why a last value was not written.
    GivenUp as "reason" {
        /// Redis was away, or went.
        BrokerDown = "broker_down",
        /// It could not be handed to the connection in its time.
        Timeout = "timeout",
        /// Too many, or too many bytes, waited.
        Bound = "bound",
        /// Redis answered with an error, or its connection took no more.
        BrokerError = "broker_error",
    }
}

label! {
    /// What the relay is busy with.
    Stage as "stage" {
        /// The rest of its thread's CPU time: reading from Redis, waking up, looking after rooms.
        Receive = "receive",
        /// From bytes to a payload and its room.
        Parse = "parse",
        /// A publication's place in its room's log, and its frame.
        Place = "place",
        /// Onto the rings of the shards, and ringing them.
        Offer = "offer",
        /// What shards say: joins, and publications of clients with all that follows.
        Commands = "commands",
    }
}

impl Label for CloseReason {
    const ALL: &'static [Self] = &CloseReason::ALL;
    fn index(self) -> usize {
        self as usize
    }
    fn label(self) -> &'static str {
        self.name()
    }
}

/// A family's place on the page: how the same field of several writers is told as one.
trait Family {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]);
}

impl Family for Number {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]) {
        head(page, name, help, kind);
        let _ = writeln!(page, "{name} {}", of.iter().map(|n| n.value()).sum::<u64>());
    }
}

impl<L: Label> Family for By<L> {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]) {
        head(page, name, help, kind);
        for value in L::ALL {
            let sum: u64 = of.iter().map(|by| by.value(*value)).sum();
            let _ = writeln!(page, "{name}{{{}=\"{}\"}} {sum}", L::KEY, value.label());
        }
    }
}

impl<L: Label> Family for SecondsBy<L> {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]) {
        head(page, name, help, kind);
        for value in L::ALL {
            let sum: f64 = of.iter().map(|by| by.seconds(*value)).sum();
            let _ = writeln!(page, "{name}{{{}=\"{}\"}} {sum}", L::KEY, value.label());
        }
    }
}

impl Family for ByVia {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]) {
        head(page, name, help, kind);
        let mut sums = BTreeMap::<(&str, &str), u64>::new();
        for (via, n) in of.iter().flat_map(|by| by.by_name_and_server()) {
            *sums.entry(via).or_default() += n;
        }
        for ((via, server), sum) in sums {
            let server = match server {
                "" => String::new(),
                server => format!(",server=\"{}\"", escaped(server)),
            };
            let _ = writeln!(page, "{name}{{source=\"{}\"{server}}} {sum}", escaped(via));
        }
    }
}

impl Family for Histogram {
    fn write(page: &mut String, name: &str, help: &str, kind: &str, of: &[&Self]) {
        head(page, name, help, kind);
        let mut below = 0;
        for (index, bound) in BUCKETS_SECONDS.iter().enumerate() {
            below += of.iter().map(|h| h.buckets[index].value()).sum::<u64>();
            let _ = writeln!(page, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let count: u64 = of.iter().map(|h| h.count.value()).sum();
        let nanos: u64 = of.iter().map(|h| h.sum_nanos.value()).sum();
        let _ = writeln!(page, "{name}_bucket{{le=\"+Inf\"}} {}", count.max(below));
        let _ = writeln!(page, "{name}_sum {}", nanos as f64 / 1e9);
        let _ = writeln!(page, "{name}_count {}", count.max(below));
    }
}

fn head(page: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// One line per metric: field, type, kind, exposition name, help.
macro_rules! table {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty, $kind:literal, $exposed:literal, $help:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $name { $(#[doc = $help] pub $field: $type,)+ }

        impl $name {
            /// Appends every family of the table, summed over `of`.
            pub fn write(page: &mut String, of: &[&Self]) {
                $(<$type as Family>::write(page, $exposed, $help, $kind,
                    &of.iter().map(|m| &m.$field).collect::<Vec<_>>());)+
            }

            /// Exposition names with their help, for the documentation's test.
            pub const FAMILIES: &'static [(&'static str, &'static str)] = &[$(($exposed, $help),)+];
        }
    };
}

table! {
    /// Written by one shard.
    ShardMetrics {
        connections: Number, "gauge", "corecast_connections", "Open connections, handshakes included.";
        accepted: Number, "counter", "corecast_connections_accepted_total", "Connections accepted.";
        closed: By<CloseReason>, "counter", "corecast_connections_closed_total", "Connections ended, by reason.";
        accept_failures: Number, "counter", "corecast_accept_failures_total", "Connections accepted and closed at once, because the driver did not take their socket.";
        accept_pauses: Number, "counter", "corecast_accept_pauses_total", "Times accepting paused: out of descriptors, or at the bound of connections.";
        websockets: Number, "gauge", "corecast_websockets", "Open WebSockets: connections that have their 101 and are not closing.";
        event_streams: Number, "gauge", "corecast_event_streams", "Open responses of server-sent events.";
        subscriptions: Number, "gauge", "corecast_subscriptions", "Memberships of connections in rooms.";
        rooms: Number, "gauge", "corecast_rooms", "Rooms on shards; a room with members on two shards counts twice.";
        handshakes: Number, "counter", "corecast_handshakes_total", "WebSocket handshakes answered with 101.";
        http_requests: Number, "counter", "corecast_http_requests_total", "Plain HTTP requests answered, errors included.";
        http_errors: Number, "counter", "corecast_http_errors_total", "Requests answered with a status of 400 or more.";
        messages_received: Number, "counter", "corecast_messages_received_total", "Data messages from clients.";
        messages_refused: Number, "counter", "corecast_messages_refused_total", "Messages of the JSON dialect that were answered with an error.";
        warm_starts: Number, "counter", "corecast_warm_starts_total", "Last values sent to newcomers of a room.";
        warm_superseded: Number, "counter", "corecast_warm_superseded_total", "Last values not sent: they came after a newer publication, after their newcomer had left, or were too long for its dialect.";
        messages_ignored: Number, "counter", "corecast_messages_ignored_total", "Data messages from clients whose route ignores what they say.";
        received_bytes: Number, "counter", "corecast_received_bytes_total", "Bytes read from clients.";
        reads_paused: Number, "counter", "corecast_reads_paused_total", "Times a connection was not read for a while because its control lane or the ring to the relay was full.";
        publications: Number, "counter", "corecast_shard_publications_total", "Publications that shards took from their rings.";
        late: Number, "counter", "corecast_late_publications_total", "Publications for a room that had left the shard meanwhile; nobody missed them.";
        owed: Number, "counter", "corecast_owed_total", "Deliveries owed: members of the room at each publication.";
        deliveries: Number, "counter", "corecast_deliveries_total", "Publications that a socket took whole.";
        conflated: Number, "counter", "corecast_conflated_total", "Deliveries superseded by a newer publication of the same key before a slow reader took them.";
        gap_notices: Number, "counter", "corecast_gap_notices_total", "Notices of lost publications to members.";
        filtered: Number, "counter", "corecast_filtered_total", "Deliveries left out because the member had sent the publication and does not hear itself.";
        drops: By<DropReason>, "counter", "corecast_drops_total", "Deliveries owed and not made, by reason.";
        stalled: Number, "gauge", "corecast_stalled_connections", "Connections whose socket takes no more for now.";
        slow: By<Cause>, "counter", "corecast_slow_connections_total", "Connections closed for being too slow, and runs of drops at one that stays, by what held them up.";
        stalls: Number, "counter", "corecast_stalls_total", "Times a connection became stalled.";
        window_bytes: Number, "gauge", "corecast_window_bytes", "Bytes of frames that some member has not been sent.";
        kept_bytes: Number, "gauge", "corecast_kept_bytes", "Bytes that connections whose socket takes no more keep beside the windows: rooms' pasts, frames half sent, answers; what many share counts once.";
        pasts_deferred: Number, "counter", "corecast_pasts_deferred_total", "Newcomers whose question for a room's past waited because too many questions were open.";
        input_bytes: Number, "gauge", "corecast_input_bytes", "Bytes of requests and messages that are not whole yet.";
        sent_bytes: Number, "counter", "corecast_sent_bytes_total", "Bytes that sockets took.";
        sends: Number, "counter", "corecast_sends_total", "Sends handed to the kernel.";
        send_calls: Number, "counter", "corecast_send_calls_total", "System calls that carried them.";
        send_fallbacks: Number, "counter", "corecast_send_fallbacks_total", "Sends that the fan-out ring did not take and that went by send().";
        turns: Number, "counter", "corecast_turns_total", "Turns of shards that had something to do.";
        turn_seconds: Histogram, "histogram", "corecast_turn_seconds", "Length of a turn: from taking publications to the last send.";
        delivery_seconds: Histogram, "histogram", "corecast_delivery_seconds", "From a publication's arrival at the relay to the end of the turn that sent it, per publication and shard.";
    }
}

table! {
    /// Written by the relay.
    RelayMetrics {
        publications_received: ByVia, "counter", "corecast_publications_received_total", "Publications that got a place in a room, by the source (as configured) and the server that brought them, or client or http for those that came through none.";
        publications_broadcast: Number, "counter", "corecast_publications_broadcast_total", "Publications that went to a shard whose clients are in their room, or were within the last seconds.";
        publications_unrouted: Number, "counter", "corecast_publications_unrouted_total", "Publications for rooms without members here.";
        refused: By<RefuseReason>, "counter", "corecast_publications_refused_total", "Publications refused, by reason.";
        gaps: By<GapReason>, "counter", "corecast_gaps_total", "Publications (broker: rooms touched by a break) that members missed, by reason.";
        recoveries: By<Recovery>, "counter", "corecast_recoveries_total", "Newcomers that asked for a room's past, by what became of it.";
        recovered_publications: Number, "counter", "corecast_recovered_publications_total", "Publications that newcomers were given out of logs.";
        recovers_withdrawn: Number, "counter", "corecast_recoveries_withdrawn_total", "Questions for a room's past that were taken back before they were answered: who asked had gone.";
        streams_up: ByServer, "gauge", "corecast_streams_up", "1 while the connections that read streams are up; 0 too where no source is a stream.";
        stream_breaks: ByServer, "counter", "corecast_stream_breaks_total", "Times the connections that read streams broke.";
        appends: By<AppendFate>, "counter", "corecast_appends_total", "Own publications that were to be appended to a stream, by what became of them.";
        recalls: By<RecallFate>, "counter", "corecast_recalls_total", "Readings of a stream's past for those who ask, by what they brought; one serves all who ask the room at the time.";
        log_rooms: Number, "gauge", "corecast_log_rooms", "Rooms with a log of record.";
        log_bytes: Number, "gauge", "corecast_log_bytes", "Bytes in logs of record.";
        ring_depth: Number, "gauge", "corecast_ring_depth", "Commands on the rings to the shards, looked at each tenth of a second.";
        ring_full: Number, "counter", "corecast_ring_full_total", "Times a ring to a shard was full and its spill began.";
        spill_items: Number, "gauge", "corecast_spill_items", "Items in the spills behind the rings.";
        broker_up: ByServer, "gauge", "corecast_broker_up", "1 while the subscription at the server is proved alive; always 1 with the local broker.";
        broker_reconnects: ByServer, "counter", "corecast_broker_reconnects_total", "Times the server came back after a break.";
        broker_attempts_failed: ByServer, "counter", "corecast_broker_attempts_failed_total", "Attempts to reach the server that failed, looked at each tenth of a second.";
        broker_breaks: ByServer, "counter", "corecast_broker_breaks_total", "Times the subscription at the server broke.";
        busy: SecondsBy<Stage>, "counter", "corecast_relay_busy_seconds_total", "Time of the relay by stage; parse, place and offer are told apart by samples, receive is the rest of its CPU time and known only where it has a thread of its own.";
        publishes_sent: ByServer, "counter", "corecast_broker_publishes_total", "Publications sent to the server.";
        publishes_local: Number, "counter", "corecast_local_deliveries_total", "Own publications that only members here got, because the broker was away, full, or refused them.";
        last_values_written: Number, "counter", "corecast_last_values_written_total", "Last values that Redis holds for newcomers since.";
        last_values_conflated: Number, "counter", "corecast_last_values_conflated_total", "Last values not written because a newer one of their key came first.";
        last_values_given_up: By<GivenUp>, "counter", "corecast_last_values_given_up_total", "Last values not written, or not known to be when Redis went, by reason.";
        warm_hits: Number, "counter", "corecast_warm_hits_total", "Newcomers for whose room Redis held a last value.";
        warm_misses: Number, "counter", "corecast_warm_misses_total", "Newcomers for whose room Redis held none.";
        warms_unanswered: Number, "counter", "corecast_warms_unanswered_total", "Newcomers that were not told a last value because Redis was away, too many waited, or their shard had no space.";
        echoes_ignored: Number, "counter", "corecast_echoes_ignored_total", "Own publications that came back from the broker naming this node as their origin.";
        echoes_missing: Number, "counter", "corecast_echoes_missing_total", "Own publications that Redis took and did not return.";
    }
}

table! {
    /// Written by the main thread, each second.
    ProcessMetrics {
        resident_bytes: Number, "gauge", "process_resident_memory_bytes", "Resident memory.";
        virtual_bytes: Number, "gauge", "process_virtual_memory_bytes", "Virtual memory.";
        open_fds: Number, "gauge", "process_open_fds", "Open descriptors.";
        max_fds: Number, "gauge", "process_max_fds", "Limit of open descriptors.";
        threads: Number, "gauge", "process_threads", "Threads of the process.";
    }
}

/// Facts about this process that are told as labels and never change after start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identity {
    /// Version of the package.
    pub version: String,
    /// "io_uring" or "epoll".
    pub driver: String,
    /// Name of the node.
    pub node_id: String,
    /// Presets in use, comma-separated.
    pub presets: String,
    /// Which of its parent's processes this is.
    pub process: Option<u16>,
    /// Unix time of the start, seconds.
    pub started_unix_seconds: f64,
}

/// All numbers of a process; shared by reference between its threads.
#[derive(Debug, Default)]
pub struct Metrics {
    /// One per shard.
    pub shards: Vec<ShardMetrics>,
    /// The relay's.
    pub relay: RelayMetrics,
    /// The main thread's.
    pub process: ProcessMetrics,
    /// CPU time of the process, in milliseconds, user and system; written by the main thread.
    pub cpu_millis: Number,
    /// Labels.
    pub identity: Identity,
    /// Add `rooms`, `clients`, `dropped_messages` (event-fanout).
    pub plain: bool,
}

impl Metrics {
    /// Numbers for `shards` shards, all zero.
    pub fn new(shards: usize, identity: Identity, plain: bool) -> Self {
        let shards = (0..shards).map(|_| ShardMetrics::default()).collect();
        Self { shards, identity, plain, ..Self::default() }
    }

    /// One field summed over the shards.
    pub fn sum(&self, field: impl Fn(&ShardMetrics) -> u64) -> u64 {
        self.shards.iter().map(field).sum()
    }

    /// The page at `/metrics`, Prometheus text format 0.0.4.
    pub fn page(&self) -> String {
        let mut page = String::with_capacity(24 * 1024);
        ShardMetrics::write(&mut page, &self.shards.iter().collect::<Vec<_>>());
        RelayMetrics::write(&mut page, &[&self.relay]);
        ProcessMetrics::write(&mut page, &[&self.process]);
        head(&mut page, "process_cpu_seconds_total", "CPU time, user and system.", "counter");
        let _ = writeln!(page, "process_cpu_seconds_total {}", self.cpu_millis.value() as f64 / 1e3);
        head(&mut page, "process_start_time_seconds", "Start of the process in Unix time.", "gauge");
        let _ = writeln!(page, "process_start_time_seconds {}", self.identity.started_unix_seconds);
        head(&mut page, "corecast_driver_info", "Kernel interface of the shards.", "gauge");
        let _ = writeln!(page, "corecast_driver_info{{driver=\"{}\"}} 1", escaped(&self.identity.driver));
        head(&mut page, "corecast_build_info", "What runs.", "gauge");
        let _ = writeln!(
            page,
            "corecast_build_info{{version=\"{}\",node=\"{}\",presets=\"{}\"}} 1",
            escaped(&self.identity.version),
            escaped(&self.identity.node_id),
            escaped(&self.identity.presets)
        );
        if let Some(process) = self.identity.process {
            let help = "Which of the processes behind one port this is.";
            head(&mut page, "corecast_process_info", help, "gauge");
            let _ = writeln!(page, "corecast_process_info{{index=\"{process}\"}} 1");
        }
        if self.plain {
            self.write_plain(&mut page);
        }
        page
    }

    /// The three names that event-fanout's users scrape.
    fn write_plain(&self, page: &mut String) {
        let dropped = self.sum(|s| s.drops.total());
        for (name, help, kind, value) in [
            (
                "rooms",
                "Rooms of the shards, each for five seconds after its last member left (event-fanout's name).",
                "gauge",
                self.sum(|s| s.rooms.value()),
            ),
            (
                "clients",
                "Open WebSockets (event-fanout's name).",
                "gauge",
                self.sum(|s| s.websockets.value()),
            ),
            // A counter, but promtool wants counters to end in _total, and the name is the users'.
            ("dropped_messages", "Deliveries owed and not made (event-fanout's name).", "gauge", dropped),
        ] {
            head(page, name, help, kind);
            let _ = writeln!(page, "{name} {value}");
        }
    }
}

/// Label values escape backslash, quote and line feed (Prometheus text format).
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_help_and_type_once() {
        let metrics = Metrics::new(3, Identity::default(), true);
        let page = metrics.page();
        let mut names: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a family is declared twice");
        assert_eq!(page.lines().filter(|l| l.starts_with("# HELP ")).count(), count);
    }

    #[test]
    fn shards_are_summed_and_buckets_are_cumulative() {
        let metrics = Metrics::new(2, Identity::default(), false);
        metrics.shards[0].deliveries.add(2);
        metrics.shards[1].deliveries.add(3);
        metrics.shards[0].turn_seconds.record(Duration::from_micros(200), 1);
        metrics.shards[1].turn_seconds.record(Duration::from_secs(9), 2);
        let page = metrics.page();
        assert!(page.contains("\ncorecast_deliveries_total 5\n"), "{page}");
        assert!(page.contains("corecast_turn_seconds_bucket{le=\"0.0001\"} 0\n"), "{page}");
        assert!(page.contains("corecast_turn_seconds_bucket{le=\"2.5\"} 1\n"), "{page}");
        assert!(page.contains("corecast_turn_seconds_bucket{le=\"+Inf\"} 3\n"), "{page}");
    }

    #[test]
    fn sources_of_one_name_are_told_together_and_what_nobody_configured_is_not() {
        let metrics = Metrics::new(1, Identity::default(), false);
        let received = &metrics.relay.publications_received;
        let name =
            |source: &str, server: &str| SourceName { source: source.to_owned(), server: server.to_owned() };
        received.name_sources(
            [
                name("psubscribe a*", "one"),
                name("subscribe b", ""),
                name("psubscribe a*", "one"),
                name("psubscribe a*", "two"),
            ]
            .into_iter(),
        );
        let counted = [(Via::Source(0), 1), (Via::Source(2), 2), (Via::Source(3), 4), (Via::Source(1), 5)];
        for (via, n) in counted.into_iter().chain([(Via::Http, 7)]) {
            received.add(via, n);
        }
        let page = metrics.page();
        let samples = |line: &&str| line.starts_with("corecast_publications_received_total{");
        let told: Vec<_> =
            page.lines().filter(samples).map(|l| l.split_once('{').unwrap_or_default().1).collect();
        let due = [
            "source=\"client\"} 0",
            "source=\"http\"} 7",
            "source=\"psubscribe a*\",server=\"one\"} 3",
            "source=\"psubscribe a*\",server=\"two\"} 4",
            "source=\"subscribe b\"} 5",
        ];
        assert_eq!(told, due);
        assert_eq!(
            (received.total(), received.of_server("one"), received.by_name()["psubscribe a*"]),
            (19, 3, 7)
        );
    }

    #[test]
    fn time_is_told_in_seconds_by_stage() {
        let metrics = Metrics::new(1, Identity::default(), false);
        metrics.relay.busy.add(Stage::Parse, 1_500_000_000);
        assert!(metrics.page().contains("\ncorecast_relay_busy_seconds_total{stage=\"parse\"} 1.5\n"));
    }

    #[test]
    fn label_values_can_not_break_the_page() {
        let identity = Identity { node_id: "a\"b\\c\nd".to_owned(), ..Identity::default() };
        assert!(Metrics::new(1, identity, false).page().contains("node=\"a\\\"b\\\\c\\nd\""));
    }
}
