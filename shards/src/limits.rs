//! Every bound of corecast, its arithmetic, and what happens at it.
//!
//! A bound that operators may want to move is a field of [`Bounds`]; one that only a change of design would move is a
//! constant. The counter of each policy is named beside it and declared in [`metrics`](crate::metrics).

use std::time::Duration;

/// The bounds that the configuration may change (table `[bounds]`); the defaults are those of corecast without a preset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Connections per process, handshakes included. At the bound accepting pauses and the kernel's backlog holds
    /// newcomers, but for those of the admin address ([`ADMIN_CONNECTIONS_MAX`]); counter `corecast_accept_pauses_total`. Default 1,000,000; never more
    /// than the descriptor limit leaves beside [`DESCRIPTORS_RESERVED`].
    pub connections_max: usize,
    /// Bytes of one message from a client, over all its fragments; judged from the frame header. Close 1009, counter
    /// `corecast_connections_closed_total{reason="message_too_big"}`.
    pub message_bytes_max: usize,
    /// Fragments per message from a client. Close 1008 `too_many_fragments`. Autobahn 9.3.1 sends 65,537.
    pub fragments_max: u32,
    /// Rooms one connection may be in. Join refused (HTTP 400, or an error in dialects that join later).
    pub rooms_per_connection_max: usize,
    /// From accept to the end of the request head, in total. Then the connection is closed: `handshake_timeout`. So long, too,
    /// the socket of an HTTP client may take nothing of its answer: `answer_unread`.
    pub handshake_timeout: Duration,
    /// A ping is sent when nothing came for this long; zero turns pings off.
    pub ping_interval: Duration,
    /// Nothing received for this long: closed, `pong_timeout`. Must be longer than `ping_interval`.
    pub pong_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 1_000_000,
            message_bytes_max: 64 * KIB,
            fragments_max: 131_072,
            rooms_per_connection_max: 64,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(60),
        }
    }
}

/// The bounds inside the engine. Not for operators; models and tests make them small, so that they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineBounds {
    /// See [`BATCH_SENDS_MAX`].
    pub batch_sends_max: usize,
    /// See [`PASS_SLICE`].
    pub pass_slice: Duration,
    /// See [`CATCHUP_BYTES_MAX`].
    pub catchup_bytes_max: usize,
    /// See [`LANE_BYTES_MAX`].
    pub lane_bytes_max: usize,
    /// See [`UP_BACKLOG_MAX`].
    pub up_backlog_max: usize,
    /// See [`SHARD_WINDOW_BYTES_MAX`].
    pub window_bytes_max: usize,
    /// See [`SHARD_INPUT_BYTES_MAX`].
    pub input_bytes_max: usize,
    /// See [`QUESTIONS_MAX`].
    pub questions_max: usize,
    /// See [`SHARD_BACKLOG_BYTES_MAX`].
    pub backlog_bytes_max: usize,
    /// See [`SPILL_ITEMS_MAX`].
    pub spill_items_max: usize,
    /// See [`LOG_ROOMS_MAX`].
    pub log_rooms_max: usize,
    /// See [`EMPTY_ROOMS_MAX`].
    pub empty_rooms_max: usize,
    /// See [`IDLE_ROOMS_MAX`].
    pub idle_rooms_max: usize,
    /// See [`SURVEY_UNITS_MAX`].
    pub survey_units_max: usize,
}

impl Default for EngineBounds {
    fn default() -> Self {
        Self {
            batch_sends_max: BATCH_SENDS_MAX,
            pass_slice: PASS_SLICE,
            catchup_bytes_max: CATCHUP_BYTES_MAX,
            lane_bytes_max: LANE_BYTES_MAX,
            up_backlog_max: UP_BACKLOG_MAX,
            window_bytes_max: SHARD_WINDOW_BYTES_MAX,
            input_bytes_max: SHARD_INPUT_BYTES_MAX,
            questions_max: QUESTIONS_MAX,
            backlog_bytes_max: SHARD_BACKLOG_BYTES_MAX,
            spill_items_max: SPILL_ITEMS_MAX,
            log_rooms_max: LOG_ROOMS_MAX,
            empty_rooms_max: EMPTY_ROOMS_MAX,
            idle_rooms_max: IDLE_ROOMS_MAX,
            survey_units_max: SURVEY_UNITS_MAX,
        }
    }
}

/// 1,024 bytes.
pub const KIB: usize = 1024;
/// 1,048,576 bytes.
pub const MIB: usize = 1024 * KIB;

/// Descriptors of the process that clients don't get: standard streams, logs, the Redis link and its next connection
/// (a link that lost its descriptors to clients would never come back).
pub const DESCRIPTORS_RESERVED: usize = 24;
/// The same for each shard: runtime, fan-out ring, doorbells, yields, listeners.
pub const DESCRIPTORS_RESERVED_PER_SHARD: usize = 16;

/// The same for each further Redis over which the rooms are spread: two connections, two more where streams are read, each with the
/// descriptor that ends it, and as many of the next attempt.
pub const DESCRIPTORS_RESERVED_PER_SERVER: usize = 16;
/// The same for each sentinel: its connection, which two descriptors name, and the thread that connects.
pub const DESCRIPTORS_RESERVED_PER_SENTINEL: usize = 4;
/// The same for a cluster: 6 for each of 32 primaries (two connections, and the thread that connects). More are served, at the
/// expense of clients.
pub const DESCRIPTORS_RESERVED_CLUSTER: usize = 6 * 32;

/// Connections of the admin address, in a process; their descriptors are reserved beside the others where there is one. Over
/// it the one that has been idle longest goes, and where none is idle newcomers wait; counter
/// `corecast_accept_pauses_total`. Two scrapers, two probes and a few people are far from it.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;

/// Descriptors of a process that clients don't get: [`DESCRIPTORS_RESERVED`], those of its shards, those of its admin
/// address where it has one, and `broker` more where its Redis is several servers.
pub const fn descriptors_reserved(shards: usize, has_admin: bool, broker: usize) -> usize {
    let admin = if has_admin { ADMIN_CONNECTIONS_MAX } else { 0 };
    DESCRIPTORS_RESERVED + admin + broker + shards * DESCRIPTORS_RESERVED_PER_SHARD
}

/// A process takes clients when its broker answers, so that nobody is let in before what he is promised can reach him; one
/// that can't be reached, or says nothing for so long, is not waited for. One that is there answers within milliseconds.
pub const BROKER_PATIENCE: Duration = Duration::from_secs(2);

/// Shards in one process: the width of a room's interest mask.
pub const SHARDS_MAX: usize = 64;

/// Processes of one parent: more than hosts have sockets and NUMA nodes, and a label of so many values still reads well.
pub const PROCESSES_MAX: usize = 64;

/// The most that `rooms_per_connection_max` may be: a gathered send has a buffer for each dirty room of its connection, and
/// the kernel takes 1,024 (`UIO_MAXIOV`; above, sendmsg says EMSGSIZE and the connection would be taken for broken).
pub const ROOMS_PER_CONNECTION_LIMIT: usize = 1024;

/// Bytes of a request head (request line and fields). Above: 431. FIELD: head at most 16 KiB.
pub const HEAD_BYTES_MAX: usize = 16 * KIB;
/// Header fields of a request. Above: 431.
pub const HEAD_FIELDS_MAX: usize = 100;
/// From the end of a request's head to the end of its body, and a second more for each [`BODY_BYTES_PER_SECOND_MIN`] that the
/// head announces: 1,034 s for the longest. Later: 408. A time since the last byte would let one byte a minute hold a
/// buffer for a year.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// See [`BODY_TIMEOUT`]. 128 kbit/s: a phone at the edge of its cell.
pub const BODY_BYTES_PER_SECOND_MIN: usize = 16 * KIB;

/// From the end of a head that announces `body_bytes` to the end of the body, at most: see [`BODY_TIMEOUT`].
pub fn body_patience(body_bytes: usize) -> Duration {
    BODY_TIMEOUT + Duration::from_secs(body_bytes.div_ceil(BODY_BYTES_PER_SECOND_MIN) as u64)
}

/// Bytes of a room name after percent-decoding, 1 to this. Outside: 400.
pub const ROOM_NAME_BYTES_MAX: usize = 255;
/// Bytes of a user name or client id after percent-decoding. Outside: 400.
pub const USER_NAME_BYTES_MAX: usize = 255;
/// Bytes of a name space's name; a full room name is at most this, a separator and [`ROOM_NAME_BYTES_MAX`]. Longer: the
/// configuration is refused, as it is at the next three bounds.
pub const SPACE_BYTES_MAX: usize = 64;
/// Bytes of a route's own sentence for a 400.
pub const MISSING_BYTES_MAX: usize = 200;
/// Bytes of a channel or pattern in a source.
pub const CHANNEL_BYTES_MAX: usize = 1024;
/// Routes, room classes and sources, of each: a class's index is one byte.
pub const TABLES_MAX: usize = 256;

/// Bytes of one publication, from wherever it comes. Above: refused (413, 1009, or dropped with a counter when Redis
/// sent it: `corecast_publications_refused_total{reason="too_big"}`).
pub const PAYLOAD_BYTES_MAX: usize = 16 * MIB;

/// RFC 6455 section 5.5: a control frame carries at most 125 bytes.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// A message of more than this many fragments must have fragments of [`FRAGMENT_BYTES_MEAN_MIN`] on average, so that a
/// message of one-byte frames can't cost a thousand times its size in parsing. Close 1008 `too_many_fragments`.
pub const FRAGMENTS_FREE: u32 = 1024;
/// See [`FRAGMENTS_FREE`].
pub const FRAGMENT_BYTES_MEAN_MIN: usize = 16;

/// Bytes of the buffer a shard receives into, shared by all its connections.
pub const RECEIVE_BUFFER_BYTES: usize = 64 * KIB;
/// Bytes of requests and messages that aren't whole, over all connections of a shard. Over it those go first that hold most:
/// 503, or close 1013, counter `corecast_connections_closed_total{reason="input_shard_budget"}`. 64 MiB are two bodies of
/// [`PAYLOAD_BYTES_MAX`] at their worst, in a buffer that has just doubled.
pub const SHARD_INPUT_BYTES_MAX: usize = 64 * MIB;
/// Bytes that may wait in a connection's control lane (pongs, closes, replies). Over it the connection is not read
/// until the lane has drained; counter `corecast_reads_paused_total`. One frame may overshoot it.
pub const LANE_BYTES_MAX: usize = 4 * KIB;

/// Slots of a ring between the relay and a shard. 2,048 slots x 80 B = 160 KiB per ring, a tenth of a second at 20,000
/// publications a second. Full: the relay spills.
pub const RING_SLOTS: usize = 2048;
/// Bytes of publications that ring and spill of one shard may hold. 32 MiB is four seconds at 8 MiB/s. Over it the relay
/// records a gap; counter `corecast_gaps_total{reason="shard_overload"}`.
pub const SHARD_BACKLOG_BYTES_MAX: usize = 32 * MIB;
/// Items in a spill, whatever their size, so that tiny publications can't outgrow the bytes bound by their overhead.
pub const SPILL_ITEMS_MAX: usize = 256 * 1024;

/// Commands that a shard takes from its ring before it sends. More is gathered cheaper, but later.
pub const TURN_COMMANDS_MAX: usize = 512;
/// Bytes of publications, those of the past included, that a shard takes from its ring before it sends: what a socket takes in one send without
/// becoming short (a receive window of 64 KiB). A larger single publication is taken alone.
pub const TURN_BYTES_MAX: usize = 48 * KIB;
/// Sends per system call of the fan-out ring, and between two yields to the runtime.
pub const BATCH_SENDS_MAX: usize = 256;
/// The most that `batch_sends_max` may be: 1,024 sends of 4 us are 4 ms in one call.
pub const BATCH_SENDS_LIMIT: usize = 1024;
/// A pass yields to the runtime after this long even within a batch of sends: 1 ms keeps another connection's echo at
/// 1 ms, 16 ms made it 25 ms (measured).
pub const PASS_SLICE: Duration = Duration::from_millis(1);
/// Bytes that one catching-up connection is sent before others get their turn.
pub const CATCHUP_BYTES_MAX: usize = 256 * KIB;

/// `TCP_NOTSENT_LOWAT`: unsent bytes the kernel takes for a socket before it says EAGAIN. Without it one stuck reader
/// hides 2.8 MB in the kernel, with it 20 KB (measured).
pub const NOTSENT_LOWAT_BYTES: u32 = 16 * KIB as u32;
/// An address that is in use is tried again for this long: the kernel ends the rings of a killed process, and with them its
/// sockets, up to 100 ms after its end (measured).
pub const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// `listen()` backlog; the kernel cuts it to `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 65_535;

/// After our Close frame input is discarded until the peer ends or this has passed; then the socket is closed.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);
/// The same for a connection whose socket takes no more, and so has the Close frame still to come.
pub const SLOW_CLOSE_LINGER: Duration = Duration::from_secs(5);
/// For so long a connection may be [`SLOW_BURST_FACTOR`] times as far behind as its rooms' limits say: one short send is
/// not slowness (a healthy 10 Mbit/s client takes 46 of 64 KiB at first, measured), nor is a burst.
pub const SLOW_GRACE: Duration = Duration::from_secs(1);
/// See [`SLOW_GRACE`]. Twice the default of 256 frames is what a shard takes in one turn ([`TURN_COMMANDS_MAX`]), and twice
/// 256 frames of 16 KiB are 8 MiB that one stuck reader can pin.
pub const SLOW_BURST_FACTOR: u64 = 2;
/// Commands that may wait for space on a shard's ring to the relay before connections that publish are not read.
pub const UP_BACKLOG_MAX: usize = 1024;
/// Last values of different keys that wait for Redis, each for at most its time-out, and their bytes, those under way
/// included. Over either bound a value is given up: `corecast_last_values_given_up_total`.
pub const LAST_VALUE_KEYS_MAX: usize = 65_536;
/// See [`LAST_VALUE_KEYS_MAX`].
pub const LAST_VALUE_BYTES_MAX: usize = 16 * MIB;
/// Writes of last values under way to Redis. 1,024 of them in a round trip of 1 ms are a million a second; what a Redis that
/// stands still gets too late is no more than these.
pub const LAST_VALUE_WRITES_MAX: usize = 1024;
/// Newcomers that wait for a last value. Over it they get none: `corecast_warms_unanswered_total`.
pub const WARMS_WAITING_MAX: usize = 65_536;
/// Errors of one read that a connection of the JSON dialect is answered one by one; the rest are answered by their number. A
/// read of 64 KiB holds 10,922 empty messages, and an answer has 200 bytes: 2 MiB otherwise.
pub const ERRORS_ANSWERED_MAX: u64 = 32;
/// Bytes of a publication's `type`; longer ones are cut.
pub const KIND_BYTES_MAX: usize = 255;
/// Connections of a shard that `/stats` says of why they are slow: those that are stuck for the longest time. A system call
/// of about 1 us each, when somebody asks; the others are in the sums of `corecast_slow_connections_total`.
pub const SLOWEST_MAX: usize = 16;
/// Rooms, and users, that `/admin/stats` lists: without `?limit=`, and at most. Above: 400.
pub const SURVEY_LIST_DEFAULT: usize = 100;
/// See [`SURVEY_LIST_DEFAULT`].
pub const SURVEY_LIST_MAX: usize = 1000;
/// Connections and memberships that a shard goes through for one part of a survey: 2,048 of them take about 0.1 ms, less
/// than a batch of sends.
pub const SURVEY_UNITS_MAX: usize = 2048;
/// Different rooms, and users, that a survey tells apart, until it is answered: seven eighths of a hash table's 262,144
/// slots x 33 B = 8.3 MiB each. Above, the answer says that it is not complete.
pub const SURVEY_NAMES_MAX: usize = 229_376;
/// Surveys that wait for the one under way. Above: 503.
pub const SURVEYS_WAITING_MAX: usize = 64;

/// Publications that `GET /history` and `GET /poll` bring: without `?limit=`, and at most. Above: 400.
pub const READ_DEFAULT: usize = 100;
/// See [`READ_DEFAULT`].
pub const READ_MAX: usize = 1000;
/// Bytes of the frames in one answer, but for one that is larger alone; the rest is asked for with the last offset.
pub const READ_BYTES_MAX: usize = MIB;
/// Questions of a shard's newcomers for rooms' pasts that the relay has not answered, those that were given up included. Over it
/// the next ones wait for an answer: `corecast_pasts_deferred_total`. A connection has as many at most as it may be in rooms;
/// then its join is answered with an error.
pub const QUESTIONS_MAX: usize = 1024;
/// `GET /poll` waits this long without `?wait=`: below the minute after which proxies give a silent response up.
pub const POLL_WAIT_DEFAULT: Duration = Duration::from_secs(25);
/// The most that `?wait=` may be. Above: 400.
pub const POLL_WAIT_MAX: Duration = Duration::from_secs(300);

/// An empty room stays on its shard for this long, so that a reconnecting member finds it.
pub const ROOM_LINGER: Duration = Duration::from_secs(5);
/// Empty rooms of a shard that linger. Over it the one that has been empty longest goes at once: a connection that joins
/// and leaves ever-new rooms by message makes hundreds of thousands a second. 65,536 x about 300 B = 20 MiB.
pub const EMPTY_ROOMS_MAX: usize = 65_536;
/// The same for the relay's rooms that nobody reads, those that are kept for their history included.
pub const IDLE_ROOMS_MAX: usize = LOG_ROOMS_MAX + EMPTY_ROOMS_MAX;

/// Bytes of all windows of a shard, and of what slow readers keep beside them: pages of rooms' pasts, frames half sent, answers.
/// What many keep counts once. Over it the connection furthest behind goes first: `slow_shard_budget`.
pub const SHARD_WINDOW_BYTES_MAX: usize = 64 * MIB;
/// Rooms of a node that exist only for their history. Over it a publication for a room that nobody is in is not kept and
/// counts as unrouted. 262,144 rooms x about 250 B = 64 MiB beside the frames, which [`NODE_LOG_BYTES_MAX`] bounds.
pub const LOG_ROOMS_MAX: usize = 262_144;
/// Bytes of all logs of record of a node. Over it every log loses its oldest eighth.
pub const NODE_LOG_BYTES_MAX: usize = 256 * MIB;

/// A RESP line (a simple string, a number, a length) without its CRLF. Longer: the Redis connection is dropped.
pub const RESP_LINE_BYTES_MAX: usize = 64 * KIB;
/// A RESP bulk string: a publication and its envelope. Longer: its frame is skipped, see [`RESP_FRAME_BYTES_MAX`].
pub const RESP_BULK_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + MIB;
/// Elements of one RESP frame, over all depths. Redis answers us with at most a few dozen (HELLO); `*2147483647` ends
/// the connection.
pub const RESP_ELEMENTS_MAX: usize = 1024;
/// A whole RESP frame: a publication, its channel and its pattern. Longer: skipped as it arrives, counter
/// `corecast_publications_refused_total{reason="too_big"}`.
pub const RESP_FRAME_BYTES_MAX: usize = RESP_BULK_BYTES_MAX + MIB;
/// The longest RESP frame that is skipped: Redis' own default bound of a string (`proto-max-bulk-len`, 512 MiB) and
/// room for the rest. Longer: the Redis connection is dropped.
pub const RESP_SKIP_BYTES_MAX: u64 = 513 * MIB as u64;
/// Depth of nested RESP aggregates.
pub const RESP_DEPTH_MAX: usize = 8;

/// Publications on their way to Redis whose answer is due. Over it publishing is refused: `broker_backlog`.
pub const PUBLISH_INFLIGHT_MAX: usize = 65_536;
/// Bytes of publications on their way to Redis. Over it publishing is refused: `broker_backlog`.
pub const PUBLISH_INFLIGHT_BYTES_MAX: usize = 32 * MIB;

/// (UN)SUBSCRIBE commands whose answer is due; the rest wait for these, so that 100,000 channels after a reconnect
/// don't become one burst. 1,024 x 300 B = 300 KiB under way.
pub const SUBSCRIBE_INFLIGHT_MAX: usize = 1024;
/// Bytes handed to the kernel in one write to Redis. What is behind them is known not to be sent when a connection
/// breaks.
pub const BROKER_WRITE_BYTES_MAX: usize = 256 * KIB;

/// Redis servers over which rooms are spread, tables `[[redis]]`: each has its connections, a probe and bounds of its own.
pub const REDIS_TABLES_MAX: usize = 16;

/// Servers that one URL of Sentinel or Cluster names. Sentinels are all listened to, a connection each; of a cluster the
/// first that answers names the others.
pub const REDIS_SERVERS_MAX: usize = 16;

/// The probe is published this often, and Redis is given up when it hasn't come back for [`PROBE_TIMEOUT`].
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`PROBE_INTERVAL`]; three probes long, so that one late wake-up isn't a reconnect.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// XREAD waits for entries this long: it is what a stream that is followed from now on waits at most, where CLIENT UNBLOCK is
/// not permitted, and how often the reading connection shows that it lives.
pub const READ_BLOCK: Duration = Duration::from_secs(1);
/// Redis is given up when the answer is so much later.
pub const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// The connection that keeps a stream's record is given up when Redis has answered nothing for this long.
pub const RECORDER_TIMEOUT: Duration = Duration::from_secs(3);
/// Numbers of a stream that has had entries are compared with Redis' own after this time: one script a second for each busy
/// stream, and as long an entry may be missing that was deleted before it was read.
pub const PROVE_INTERVAL: Duration = Duration::from_secs(1);
/// The same for a stream that nothing was ever appended to, so that its epoch stays: Redis keeps that for three times as long.
pub const EMPTY_PROVE_INTERVAL: Duration = Duration::from_secs(100);
/// Streams whose numbers are compared in one turn; the others follow in the next.
pub const PROVE_BATCH_MAX: usize = 256;
/// CLIENT UNBLOCK is said again when it came before the block: about ten round trips in one host.
pub const UNBLOCK_INTERVAL: Duration = Duration::from_millis(5);
/// Entries of one answer to XREAD, over all streams, as far as each may have one.
pub const READ_ENTRIES_MAX: usize = 1024;
/// Entries of one stream in one answer: what a busy stream may hold up the others.
pub const READ_STREAM_ENTRIES_MAX: usize = 128;
/// The most that `maxlen` of a stream may be: 32 bits, whatever the machine.
pub const STREAM_MAXLEN_MAX: usize = u32::MAX as usize;
/// Entries of one answer to XREVRANGE. One that is longer than a frame may be is asked for anew with an eighth of them.
pub const HISTORY_PAGE_ENTRIES_MAX: u64 = 64;
/// RESP elements of one answer: 64 entries of 30 fields. Over it: as one that is too long, until an entry alone is.
pub const HISTORY_PAGE_ELEMENTS_MAX: u64 = 4096;
/// Entries that one client is given out of a stream. Over it: not recovered.
pub const STREAM_HISTORY_ENTRIES_MAX: u64 = 10_000;
/// Bytes of them. Over it: not recovered.
pub const STREAM_HISTORY_BYTES_MAX: usize = 16 * MIB;
/// Bytes of the frames of a room's log that holds what was read back, and what has come since.
pub const RECALLED_BYTES_MAX: usize = 2 * STREAM_HISTORY_BYTES_MAX;
/// The same in publications, each of which costs about 100 B beside its frame: 4 MiB.
pub const RECALLED_FRAMES_MAX: usize = 4 * STREAM_HISTORY_ENTRIES_MAX as usize;
/// What was read back is kept so long for those who ask next: after a restart all clients of a room ask within seconds.
pub const RECALLED_KEPT: Duration = Duration::from_secs(10);
/// Rooms whose streams are read back at the same time; the others wait their turn. They share one connection to Redis.
pub const RECALLS_MAX: usize = 8;
/// Who joins or asks for the past of a room whose stream can't be reached waits so long for it: Redis and its clients come
/// back at the same time.
pub const STREAM_PATIENCE: Duration = Duration::from_secs(5);
// A Redis that answers nothing is given up before that, so that it counts as away.
const _: () = assert!(RECORDER_TIMEOUT.as_millis() < STREAM_PATIENCE.as_millis());
/// Sweeps, ten a second, that a client waits who has been at a node that has read further than this one. What it lacks is on
/// its way, or it made its number up.
pub const AHEAD_SWEEPS: u8 = 10;
/// A stream that Redis refused is tried again after this time.
pub const STREAM_RETRY: Duration = Duration::from_secs(5);
/// Refused streams whose reason is known to have been logged. Over it they are logged again.
pub const REFUSALS_NOTED_MAX: usize = 1024;
/// An own publication that Redis has is expected among its stream's entries for so long; afterwards nobody is left out of it.
pub const APPEND_RETURN_MAX: Duration = Duration::from_secs(10);

/// From connect to the last confirmed subscription.
pub const BROKER_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// First wait before reconnecting; doubles to [`RECONNECT_WAIT_MAX`], each with full jitter above a floor of half.
pub const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(50);
/// See [`RECONNECT_WAIT_MIN`]. A Redis that is back is used within half a second: this, and a handshake. One that stays away
/// is knocked at two to five times a second by each connection of a node.
pub const RECONNECT_WAIT_MAX: Duration = Duration::from_millis(400);

const _: () =
    assert!(ROOM_NAME_BYTES_MAX <= HEAD_BYTES_MAX / 3, "a room name must fit a head percent-encoded");
const _: () =
    assert!(SHARD_INPUT_BYTES_MAX >= 2 * (2 * PAYLOAD_BYTES_MAX), "the largest body must fit beside another");
const _: () = assert!(RESP_BULK_BYTES_MAX > PAYLOAD_BYTES_MAX, "an envelope is larger than what it holds");
const _: () =
    assert!(SHARD_BACKLOG_BYTES_MAX >= PAYLOAD_BYTES_MAX, "the largest publication must fit an empty ring");
const _: () = assert!(BATCH_SENDS_MAX <= BATCH_SENDS_LIMIT, "the default is a value that may be set");
const _: () = assert!(RING_SLOTS.is_power_of_two(), "a ring's index is masked");
