// Types of corecast.js, and its manual.

/** How far a reader has come: it has everything up to and with `offset` of the run of numbers `epoch`. */
export interface Position {
  epoch: string;
  offset: number;
}

export interface Publication<Data = unknown> {
  room: string;
  /** The event's type, or `"message"`. */
  type: string;
  /** What was published; a `Uint8Array` where it is no UTF-8. */
  data: Data;
  /** Null where the server numbers nothing, and for the last value that a newcomer is told. */
  offset: number | null;
  epoch: string | null;
}

export interface Joined extends Partial<Position> {
  room: string;
  /**
   * After a reconnect, or a join with `resume`: whether everything since the position follows. Where it doesn't a `gap`
   * follows. Null for a newcomer.
   */
  recovered: boolean | null;
}

/** Publications that did not come and won't. */
export interface Gap {
  room: string;
  /**
   * `slow`, `shard_overload`: thrown away on the server. `too_long`: a publication too long for the dialect. `broker`: the
   * source broke. `trimmed`, `too_big`: the room's stream didn't hold them any more, or an entry was too long. `not_recovered`: after a reconnect the server no longer had everything.
   */
  reason: 'slow' | 'shard_overload' | 'too_long' | 'trimmed' | 'too_big' | 'broker' | 'not_recovered' | (string & {});
  /** The epoch from now on. */
  epoch: string | null;
  /** First and last offset that are missing; null where nobody knows. */
  from: number | null;
  to: number | null;
}

export interface Overflow {
  room: string;
  /** Publications that this room threw away here so far, as in `room.stats.dropped`. */
  dropped: number;
}

export interface Left {
  room: string;
}

/** How a connection ended. 1006: no Close frame came; the reason is this client's (`silent`, `connect_timeout`, `no_url`). */
export interface Close {
  code: number;
  reason: string;
  /** What the WebSocket said beside it; browsers say nothing. */
  error: unknown;
}

export type StateChange =
  | { state: 'connecting'; previous: State }
  | { state: 'open'; previous: State }
  /** The next attempt is `delayMs` away. */
  | ({ state: 'waiting'; previous: State; delayMs: number } & Close)
  /** For good. `error` is null after `close()`. */
  | { state: 'closed'; previous: State; error: CorecastError | null };

export type State = 'connecting' | 'open' | 'waiting' | 'closed';

export class CorecastError extends Error {
  constructor(code: string, message: string, details?: object);
  /**
   * The server's: `invalid`, `role`, `not_joined`, `too_many_rooms`, `publish_not_allowed`. This client's:
   * `offline`, `queue_full`, `busy`, `too_big`: a publication that was not sent. `left`, `closed`, `disconnected`, `url`:
   * why there is no room or connection any more. `overflow`: a loop was too slow. `protocol`: found what is no message.
   */
  code: string;
  room?: string;
  /** Of an error of the server: where in the message, what stood there, what was due. */
  field?: string;
  found?: string;
  expected?: string;
  /** With `disconnected`. */
  close?: Close;
}

export interface JoinOptions {
  /** What a newcomer gets of the room's log before live publications: all, nothing (the default), or the last `n`. */
  first?: 'oldest' | 'newest' | number;
  /** Goes on where an earlier client stopped: the `epoch` and `offset` of the last publication that was dealt with. */
  resume?: Position;
  /** As the client's, for this room. */
  bufferMax?: number;
  overflow?: 'drop-oldest' | 'fail';
}

export interface Options {
  /** Default: the global one (browsers, Node 22 and later). On Node 20 that of the package `ws`. */
  WebSocket?: WebSocketConstructor;
  /** Subprotocols to offer. Default: `['corecast.v1.json']`; `[]` for a server that knows none. */
  protocols?: string[];
  /**
   * Whether to come back after a connection ended; `undefined` leaves it to the client, which comes back unless the
   * code says that it would only be closed again (1002, 1003, 1007, 1008, 1009, 1010).
   */
  retry?: (close: Close) => boolean | undefined;
  /** The n-th attempt waits a random time up to `retryBaseMs` x 2^n, and up to `retryCapMs`. Default: 500 and 30,000. */
  retryBaseMs?: number;
  retryCapMs?: number;
  /** A connection that lasted so long starts counting its failures anew. Default: 60,000. */
  stableMs?: number;
  /** The base after 1013; at least half of the bound is waited. Default: 5,000. Raise it where overload lasts. */
  overloadBaseMs?: number;
  /** After 1001 and 1012 a random time up to this is waited. Default: 5,000. Raise it with the clients of a node. */
  restartSpreadMs?: number;
  /** Time for the URL, the connection and its handshake. Default: 10,000. */
  connectTimeoutMs?: number;
  /** After so much silence the server is asked for a sign of life. Default: 25,000, below the time-outs of proxies. */
  pingAfterMs?: number;
  /** And has so long to give one, before the connection is given up. Default: 10,000. */
  pongTimeoutMs?: number;
  /** Publications that may wait for their room to be joined; the next gets `queue_full`. Default: 0, each gets `offline`. */
  publishQueueMax?: number;
  /** A longer one gets `too_big`; the server would close. Default: 65,536, as the server's `--message-bytes-max`. */
  messageBytesMax?: number;
  /** Publications are refused with `busy` while more bytes wait to be sent. Default: 1 MiB. */
  sendBufferBytesMax?: number;
  /** Publications that wait for a `for await`, and for the first reader of a room. Default: 1,024. */
  bufferMax?: number;
  /**
   * What happens beyond: `drop-oldest` (the default) throws the oldest away, `fail` ends the loop with an error. Either
   * way it is counted in `room.stats.dropped` and told by `overflow`.
   */
  overflow?: 'drop-oldest' | 'fail';
  /** Time, chance and the page, for tests. */
  host?: Partial<Host>;
}

/** The part of a WebSocket that is used: that of browsers, of Node 22 and of the package `ws` fit. */
export interface WebSocketLike {
  readonly bufferedAmount: number;
  // `any`: each of the three has event types of its own.
  onopen: ((event: any) => any) | null;
  onmessage: ((event: any) => any) | null;
  onerror: ((event: any) => any) | null;
  onclose: ((event: any) => any) | null;
  send(text: string): void;
  close(): void;
}

export type WebSocketConstructor = new (url: string, protocols?: string[]) => WebSocketLike;

export interface Host {
  /** Milliseconds. */
  now(): number;
  /** From [0, 1). */
  random(): number;
  setTimeout(callback: () => void, delayMs: number): unknown;
  clearTimeout(timer: any): void;
  /** Where `online` and `offline` are told, and `visibilitychange`. */
  page: EventTarget | undefined;
  document: (EventTarget & { visibilityState: string }) | undefined;
}

export interface RoomEvents<Data> {
  publication: Publication<Data>;
  joined: Joined;
  gap: Gap;
  left: Left;
  /** Without a listener here it is told to those of the client. */
  error: CorecastError;
  overflow: Overflow;
}

/** A room that was joined. Its publications are read by `for await` or by `on('publication')`; both may be used. */
export class Room<Data = unknown> implements AsyncIterable<Publication<Data>> {
  private constructor();
  readonly name: string;
  readonly state: 'joining' | 'joined' | 'left' | 'failed';
  /** The first `joined`; rejected where it doesn't come to that. */
  readonly ready: Promise<Joined>;
  /** Of the newest publication or gap that came, whether or not a loop has seen it. */
  readonly position: Position | null;
  readonly stats: Readonly<{
    /** Publications. */
    received: number;
    /** Publications that came a second time and went no further. */
    duplicates: number;
    gaps: number;
    /** Publications that a loop, or nobody, was too slow for. */
    dropped: number;
  }>;

  /**
   * Publishes, and is done when the message is handed to the connection: the server answers only what it refuses, by
   * `error`. Nothing is sent twice. Rejected where the room is not joined at the moment, see `publishQueueMax`.
   */
  publish(data: unknown): Promise<void>;
  /** Ends its loops at once; done when the server has confirmed it or the connection is gone. */
  leave(): Promise<void>;
  /** Returns what takes the listener off again. Nothing gets lost between the join and the first reader. */
  on<Type extends keyof RoomEvents<Data>>(type: Type, listener: (event: RoomEvents<Data>[Type]) => void): () => void;
  off<Type extends keyof RoomEvents<Data>>(type: Type, listener: (event: RoomEvents<Data>[Type]) => void): void;
  /** Each loop has a buffer of its own. It ends when the room is left, and throws when it fails. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Publication<Data>>;
}

export interface ClientEvents {
  state: StateChange;
  error: CorecastError;
}

/** One connection that comes back by itself, and the rooms joined over it. */
export class Corecast {
  /**
   * Connects at once. A `url` that is a function is asked before every attempt, for a token that expires.
   *
   * @throws {SyntaxError} for a URL that is none; {TypeError} where there is no WebSocket.
   */
  constructor(url: string | URL | (() => string | URL | Promise<string | URL>), options?: Options);
  readonly state: State;
  /** Rooms that are joined or being joined, by name. */
  readonly rooms: ReadonlyMap<string, Room>;
  /** When the client is closed for good: with the reason, or null after `close()`. Never rejected. */
  readonly closed: Promise<CorecastError | null>;
  readonly stats: Readonly<{
    /** Connections that were had. */
    opened: number;
    /** Connections that ended or were not to be had. */
    lost: number;
    /** Errors that were told. */
    errors: number;
    /** Messages for rooms that nobody joined here. */
    strays: number;
  }>;

  /**
   * Joins a room, now and after every reconnect. A room that is joined is returned as it is.
   *
   * @throws {RangeError} for a name that is not 1 to 255 bytes of UTF-8 without control characters; {TypeError} for
   * options of a room that is joined already.
   */
  join<Data = unknown>(room: string, options?: JoinOptions): Room<Data>;
  /** As `room.leave()`; nothing happens where it isn't joined. */
  leave(room: string): Promise<void>;
  /** As `room.publish()`. */
  publish(room: string, data: unknown): Promise<void>;
  /** Leaves everything, for good. */
  close(): void;
  on<Type extends keyof ClientEvents>(type: Type, listener: (event: ClientEvents[Type]) => void): () => void;
  off<Type extends keyof ClientEvents>(type: Type, listener: (event: ClientEvents[Type]) => void): void;
}

/** The defaults of the options that are numbers. */
export const DEFAULTS: Readonly<{
  retryBaseMs: number; retryCapMs: number; stableMs: number; overloadBaseMs: number; restartSpreadMs: number;
  connectTimeoutMs: number; pingAfterMs: number; pongTimeoutMs: number; messageBytesMax: number; sendBufferBytesMax: number;
  publishQueueMax: number; bufferMax: number;
}>;

/** Whether a client that was closed so comes back by itself. */
export function invitesBack(close: { code: number; reason: string }): boolean;

/** How long it stays away, in milliseconds, after so many `failures` in a row, for a `random` from [0, 1). */
export function waitMs(code: number, failures: number, options: typeof DEFAULTS, random: number): number;
