// A client of corecast's JSON dialect (docs/PROTOCOL.md), for browsers and Node: rooms over one WebSocket that comes back
// by itself.
//
// It owns the connection and its return, each room's position (epoch, offset), and what the application is told. An offset
// is never delivered twice or out of order; whatever did not come is told as 'gap', whatever was thrown away here is
// counted. Types and the manual of every option are in corecast.d.ts.
//
// One file, longer than ours are elsewhere: it is served or copied as it is, and nothing has to be built.

/** Defaults of the options that have a number; what they mean is said in corecast.d.ts. */
export const DEFAULTS = Object.freeze({
  retryBaseMs: 500,
  retryCapMs: 30_000,
  // A connection that lasted so long starts counting its failures anew.
  stableMs: 60_000,
  // Ten times the base: who is told "try again later" was one too many a moment ago.
  overloadBaseMs: 5_000,
  // A node of 10,000 clients that restarts sees 2,000 handshakes a second: below 3 % of a core at 14 us each.
  restartSpreadMs: 5_000,
  connectTimeoutMs: 10_000,
  // Below the 60 s after which proxies give up on a silent connection.
  pingAfterMs: 25_000,
  pongTimeoutMs: 10_000,
  // What the server takes in one message (--message-bytes-max).
  messageBytesMax: 64 * 1024,
  sendBufferBytesMax: 1024 * 1024,
  publishQueueMax: 0,
  bufferMax: 1024,
});

/** What a promise is rejected with, an 'error' brings and a broken iteration throws; `code` is a word to compare with. */
export class CorecastError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.name = 'CorecastError';
    this.code = code;
    Object.assign(this, details);
  }
}

// Methods of one class for the others of this file: an application can't call what it can't name.
const EMIT = Symbol('emit');
const HAS = Symbol('has');
const ASK = Symbol('ask');
const HEAR = Symbol('hear');
const END = Symbol('end');

/** Listeners by type. One that throws doesn't keep the others, nor the client, from what they do. */
class Emitter {
  #listeners;

  constructor(types) {
    this.#listeners = new Map(types.map((type) => [type, new Set()]));
  }

  /** Returns what takes the listener off again. */
  on(type, listener) {
    this.#of(type).add(listener);
    return () => this.off(type, listener);
  }

  off(type, listener) {
    this.#of(type).delete(listener);
  }

  [HAS](type) {
    return this.#of(type).size > 0;
  }

  [EMIT](type, detail) {
    for (const listener of [...this.#of(type)]) {
      try {
        listener(detail);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }

  #of(type) {
    const listeners = this.#listeners.get(type);
    if (!listeners) {
      throw new TypeError(`there is no event ${JSON.stringify(type)}, but ${[...this.#listeners.keys()].join(', ')}`);
    }
    return listeners;
  }
}

/** Publications between a room and one `for await`: at most `max`, then the oldest goes or the iteration fails. */
class Inbox {
  #items = [];
  #takers = [];
  #ended = null;
  #max;
  #overflow;
  #returned;

  constructor(max, overflow, returned) {
    this.#max = max;
    this.#overflow = overflow;
    this.#returned = returned;
  }

  /** False when something was lost for it. */
  push(item) {
    if (this.#ended) return false;
    const taker = this.#takers.shift();
    if (taker) taker.resolve({ done: false, value: item });
    else this.#items.push(item);
    if (this.#items.length <= this.#max) return true;
    if (this.#overflow === 'fail') {
      this.#items.pop();
      this.#returned(this);
      this.end(new CorecastError('overflow', `the loop is more than ${this.#max} publications behind its room: `
        + 'raise bufferMax, or have the oldest go (overflow: "drop-oldest")'));
    } else {
      this.#items.shift();
    }
    return false;
  }

  /** What is in it may still be taken. */
  end(error) {
    if (this.#ended) return;
    this.#ended = { error };
    for (const taker of this.#takers.splice(0)) this.#finish(taker);
  }

  next() {
    if (this.#items.length > 0) return Promise.resolve({ done: false, value: this.#items.shift() });
    return new Promise((resolve, reject) => {
      if (this.#ended) this.#finish({ resolve, reject });
      else this.#takers.push({ resolve, reject });
    });
  }

  /** `break` in a `for await`. */
  return() {
    this.#items.length = 0;
    this.end();
    this.#returned(this);
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** Without waiting: what there is, and what it ended with. */
  takeAll() {
    return { items: this.#items.splice(0), error: this.#ended?.error };
  }

  #finish({ resolve, reject }) {
    const { error } = this.#ended;
    // An error is thrown once; who asks again learns that it is over.
    this.#ended = {};
    if (error) reject(error);
    else resolve({ done: true, value: undefined });
  }
}

/** One room: what the application reads and publishes, and how far this client has come in it. */
export class Room extends Emitter {
  #name;
  #client;
  #first;
  #position;
  #state = 'joining';
  #wasJoined = false;
  #stats = { received: 0, duplicates: 0, gaps: 0, dropped: 0 };
  #inboxes = new Set();
  // Holds what comes before anybody reads, so that a listener after an `await` misses nothing; null from then on.
  #early;
  #error;
  #options;
  #ready = {};

  constructor(client, name, options) {
    super(['publication', 'joined', 'gap', 'left', 'error', 'overflow']);
    this.#client = client;
    this.#name = name;
    this.#first = options.first;
    this.#position = options.resume ? { ...options.resume } : null;
    this.#options = options;
    this.#early = this.#inbox();
    this.ready = new Promise((resolve, reject) => { this.#ready = { resolve, reject }; });
    // Who doesn't wait for it hears of a failure by 'error'.
    this.ready.catch(() => {});
  }

  get name() { return this.#name; }

  get state() { return this.#state; }

  get stats() { return { ...this.#stats }; }

  get position() { return this.#position && { ...this.#position }; }

  publish(data) { return this.#client.publish(this.#name, data); }

  leave() { return this.#client.leave(this.#name); }

  on(type, listener) {
    const off = super.on(type, listener);
    // Not before the caller has what `on` returns.
    if (type === 'publication' && this.#early) queueMicrotask(() => this.#release());
    return off;
  }

  [Symbol.asyncIterator]() {
    const inbox = this.#early ?? this.#inbox();
    this.#early = null;
    this.#inboxes.add(inbox);
    if (this.#isOver()) inbox.end(this.#error);
    return inbox;
  }

  /** It is out until a 'joined' comes: the join to send on the next connection. */
  [ASK]() {
    this.#state = 'joining';
    const message = { type: 'join', room: this.#name };
    if (this.#position) message.resume = this.#position;
    else if (this.#first !== undefined && !this.#wasJoined) message.first = this.#first;
    return message;
  }

  /** A message of the server for this room. */
  [HEAR](message) {
    if (isPublication(message)) this.#publication(message);
    else if (message.type === 'joined') this.#joined(message.data);
    else if (message.type === 'gap') this.#gap(message.data);
  }

  /** It is over: left (without an error), refused, or the client is closed. */
  [END](state, error) {
    if (this.#isOver()) return;
    this.#state = state;
    this.#error = error;
    this.#ready.reject(error ?? new CorecastError('left', `room ${this.#name} was left before it was joined`));
    for (const inbox of this.#inboxes) inbox.end(error);
    this.#early?.end(error);
    this.#inboxes.clear();
  }

  #isOver() { return this.#state === 'left' || this.#state === 'failed'; }

  #inbox() {
    return new Inbox(this.#options.bufferMax, this.#options.overflow, (inbox) => this.#inboxes.delete(inbox));
  }

  #joined(data) {
    // Who is in already is told so again.
    if (this.#state !== 'joining') return;
    const before = this.#position;
    const after = data && typeof data.offset === 'number' ? { epoch: data.epoch ?? '', offset: data.offset } : null;
    // A newcomer recovers nothing. Where nothing was published meanwhile there was nothing to recover.
    const isWhole = data?.recovered === true || isSame(before, after);
    const recovered = before || this.#wasJoined ? isWhole : null;
    this.#position = after;
    if (recovered && before && after) this.#position.offset = Math.max(before.offset, after.offset);
    this.#state = 'joined';
    this.#wasJoined = true;
    const joined = { room: this.#name, recovered, ...this.#position };
    this.#ready.resolve(joined);
    this[EMIT]('joined', joined);
    // Unless it was left on hearing that.
    if (recovered === false && this.#state === 'joined') this.#lost('not_recovered', before, after);
  }

  /** What lies between two positions will not come. A range is known only inside one epoch. */
  #lost(reason, before, after) {
    const isKnown = before && after && before.epoch === after.epoch && before.offset < after.offset;
    this.#stats.gaps += 1;
    this[EMIT]('gap', {
      room: this.#name, reason, epoch: after?.epoch ?? null,
      from: isKnown ? before.offset + 1 : null, to: isKnown ? after.offset : null,
    });
  }

  #gap(data) {
    if (this.#state !== 'joined') return;
    const { from, to, offset, reason } = data;
    const epoch = data.epoch ?? this.#position?.epoch ?? '';
    if (typeof to === 'number') {
      const passed = this.#position?.epoch === epoch ? this.#position.offset : 0;
      // Told before.
      if (to <= passed) return;
      this.#position = { epoch, offset: to };
      this.#stats.gaps += 1;
      this[EMIT]('gap', { room: this.#name, reason, epoch, from: Math.max(from, passed + 1), to });
    } else {
      const before = this.#position;
      this.#position = typeof offset === 'number' ? { epoch, offset } : null;
      this.#lost(reason, before, this.#position);
    }
  }

  #publication({ type, data, offset }) {
    if (this.#state !== 'joined') return;
    if (offset !== undefined) {
      if (this.#position && offset <= this.#position.offset) {
        this.#stats.duplicates += 1;
        return;
      }
      this.#position = { epoch: this.#position?.epoch ?? '', offset };
    }
    this.#stats.received += 1;
    this.#deliver({
      room: this.#name, type, data, epoch: this.#position?.epoch ?? null, offset: offset ?? null,
    });
  }

  #deliver(publication) {
    let whole = true;
    if (this.#early) {
      whole = this.#early.push(publication);
    } else {
      for (const inbox of this.#inboxes) whole = inbox.push(publication) && whole;
      this[EMIT]('publication', publication);
    }
    if (whole) return;
    this.#stats.dropped += 1;
    this[EMIT]('overflow', { room: this.#name, dropped: this.#stats.dropped });
  }

  #release() {
    if (!this.#early) return;
    const { items, error } = this.#early.takeAll();
    this.#early = null;
    for (const publication of items) this[EMIT]('publication', publication);
    if (error?.code === 'overflow') this[EMIT]('error', error);
  }
}

/** One connection to a corecast server, and the rooms joined over it. */
export class Corecast extends Emitter {
  #url;
  #options;
  #host;
  #state = 'connecting';
  #socket = null;
  #rooms = new Map();
  // Who is to be told of a 'left' that is due on this connection, by name of the room, oldest first.
  #leaving = new Map();
  // Publications that wait for their room, oldest first.
  #queue = [];
  #stats = { opened: 0, lost: 0, errors: 0, strays: 0 };
  // Connections lost or not had since the last that was stable.
  #failures = 0;
  #openedAt = null;
  #heardAt = 0;
  #isProbed = false;
  // The server said how long to stay away: no event of the page makes it shorter.
  #isTold = false;
  // At most one each: for the next attempt or its deadline, and for the silence of an open connection.
  #dialTimer = null;
  #silenceTimer = null;
  #socketError = null;
  #closed = {};

  constructor(url, options = {}) {
    super(['state', 'error']);
    this.#url = url;
    const others = { protocols: ['corecast.v1.json'], WebSocket: globalThis.WebSocket, overflow: 'drop-oldest' };
    this.#options = { ...DEFAULTS, ...others, ...given(options) };
    this.#host = { ...HOST, ...options.host };
    if (typeof this.#options.WebSocket !== 'function') {
      throw new TypeError('there is no WebSocket here: pass that of the package ws, new Corecast(url, { WebSocket })');
    }
    this.closed = new Promise((resolve) => { this.#closed = { resolve }; });
    this.#dial();
    this.#listenToPage('addEventListener');
  }

  get state() { return this.#state; }

  get stats() { return { ...this.#stats }; }

  get rooms() { return new Map(this.#rooms); }

  join(name, options) {
    const there = this.#rooms.get(name);
    if (there && options) throw new TypeError(`room ${name} is joined already: leave it to join it otherwise`);
    if (there) return there;
    checkName(name);
    checkFirst(options?.first);
    const { bufferMax, overflow } = this.#options;
    const room = new Room(this, name, { bufferMax, overflow, ...given(options) });
    if (this.#state === 'closed') {
      room[END]('failed', new CorecastError('closed', 'the client is closed'));
      return room;
    }
    this.#rooms.set(name, room);
    if (this.#isOpen()) this.#say(room[ASK]());
    return room;
  }

  leave(name) {
    const room = this.#rooms.get(name);
    if (!room) return Promise.resolve();
    this.#forget(room, 'left');
    if (!this.#isOpen()) {
      room[EMIT]('left', { room: name });
      return Promise.resolve();
    }
    this.#say({ type: 'leave', room: name });
    return new Promise((resolve) => {
      if (!this.#leaving.has(name)) this.#leaving.set(name, []);
      this.#leaving.get(name).push(() => {
        room[EMIT]('left', { room: name });
        resolve();
      });
    });
  }

  publish(name, data) {
    return new Promise((resolve, reject) => {
      const text = `{"type":"message","room":${JSON.stringify(name)},"data":${toJson(data)}}`;
      const refusal = this.#refusal(name, text);
      if (refusal) return reject(new CorecastError(...refusal, { room: name }));
      if (!this.#isJoined(name)) return this.#queue.push({ name, text, resolve, reject });
      this.#socket.send(text);
      resolve();
    });
  }

  close() {
    this.#end(null);
  }

  /** Not while the application is told that the connection is gone. */
  #isOpen() {
    return this.#state === 'open' && this.#socket !== null;
  }

  #isJoined(name) {
    return this.#isOpen() && this.#rooms.get(name)?.state === 'joined';
  }

  /** Code and sentence where a publication can neither be sent nor wait. */
  #refusal(name, text) {
    const { messageBytesMax, sendBufferBytesMax, publishQueueMax } = this.#options;
    if (this.#state === 'closed') return ['closed', 'the client is closed'];
    if (!this.#rooms.has(name)) return ['not_joined', `room ${name} is not joined`];
    const bytes = bytesOf(text);
    // The server would end the connection (1009).
    if (bytes > messageBytesMax) return ['too_big', `found ${bytes} bytes, at most ${messageBytesMax} were due`];
    if (this.#isJoined(name)) {
      const unsent = this.#socket.bufferedAmount;
      return unsent > sendBufferBytesMax ? ['busy', `${unsent} bytes wait to be sent: publish slower`] : null;
    }
    if (this.#queue.length < publishQueueMax) return null;
    if (publishQueueMax > 0) return ['queue_full', `${publishQueueMax} publications wait already`];
    return ['offline', `room ${name} is not joined now: await room.ready, or set publishQueueMax`];
  }

  // --- the connection -----------------------------------------------------------------------------------------------

  /** @throws What the WebSocket constructor says of a URL that is none. */
  #dial() {
    this.#clearTimers();
    this.#setState({ state: 'connecting' });
    // Whoever was told of it may have closed.
    if (this.#state !== 'connecting') return;
    this.#dialTimer = this.#host.setTimeout(
      () => this.#lost({ code: 1006, reason: 'connect_timeout' }), this.#options.connectTimeoutMs);
    if (typeof this.#url !== 'function') return this.#open(this.#url);
    const timer = this.#dialTimer;
    Promise.resolve().then(this.#url).then(
      // Unless the time is over, or the client closed.
      (url) => timer === this.#dialTimer && this.#guarded(() => this.#open(url)),
      (error) => timer === this.#dialTimer && this.#lost({ code: 1006, reason: 'no_url', error }),
    );
  }

  #open(url) {
    let socket;
    try {
      socket = new this.#options.WebSocket(String(url), this.#options.protocols);
    } catch (error) {
      this.#clearTimers();
      throw error;
    }
    this.#socket = socket;
    this.#socketError = null;
    socket.onopen = () => this.#opened();
    socket.onmessage = ({ data }) => this.#heard(data);
    socket.onerror = (event) => {
      // Browsers say nothing more.
      this.#socketError = event?.error ?? event?.message ?? null;
      // A close follows, but for a connection that Node 22's own WebSocket could not make.
      if (this.#openedAt === null) this.#lost({ code: 1006, reason: '', error: this.#socketError });
    };
    socket.onclose = ({ code, reason }) => this.#lost({ code, reason, error: this.#socketError });
  }

  #opened() {
    this.#host.clearTimeout(this.#dialTimer);
    this.#dialTimer = null;
    this.#openedAt = this.#heardAt = this.#host.now();
    this.#stats.opened += 1;
    this.#watch();
    for (const room of this.#rooms.values()) this.#say(room[ASK]());
    this.#setState({ state: 'open' });
  }

  /** The connection is gone, or was not to be had. */
  #lost({ code, reason, error = null }) {
    this.#abandon();
    this.#stats.lost += 1;
    const { now, random } = this.#host;
    if (this.#openedAt !== null && now() - this.#openedAt >= this.#options.stableMs) this.#failures = 0;
    this.#openedAt = null;
    // From here on the application is told and may do anything: nothing is joined any more, and nothing can be sent.
    for (const room of this.#rooms.values()) room[ASK]();
    const leaving = this.#takeLeaving();
    const close = { code, reason, error };
    const comesBack = this.#options.retry?.(close) ?? invitesBack(close);
    if (comesBack && this.#state !== 'closed') {
      this.#isTold = TOLD.has(code);
      const delayMs = Math.round(waitMs(code, this.#failures, this.#options, random()));
      this.#failures += 1;
      this.#wait(delayMs, close);
    } else {
      this.#end(new CorecastError('disconnected', `the connection ended with ${code} ${reason}`.trim(), { close }));
    }
    for (const tell of leaving) tell();
  }

  #wait(delayMs, close) {
    this.#host.clearTimeout(this.#dialTimer);
    this.#dialTimer = this.#host.setTimeout(() => this.#guarded(() => this.#dial()), delayMs);
    this.#setState({ state: 'waiting', delayMs, ...close });
  }

  /** A URL that is none ends the client: the next attempt would be refused as this one was. */
  #guarded(dial) {
    try {
      dial();
    } catch (error) {
      this.#end(new CorecastError('url', `no connection can be opened: ${error.message}`, { cause: error }));
    }
  }

  /** Lets go of the socket, whatever state it is in. */
  #abandon() {
    this.#clearTimers();
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    // `ws` throws an error that nobody listens to.
    socket.onerror = () => {};
    // It would wait half a minute for the answer of a peer that is gone.
    if (typeof socket.terminate === 'function' && this.#state !== 'closed') socket.terminate();
    else socket.close();
  }

  #end(error) {
    if (this.#state === 'closed') return;
    this.#setState({ state: 'closed', error });
    this.#abandon();
    this.#listenToPage('removeEventListener');
    for (const tell of this.#takeLeaving()) tell();
    for (const room of [...this.#rooms.values()]) this.#forget(room, error ? 'failed' : 'left', error);
    this.#closed.resolve(error);
    if (error) this.#complain(error);
  }

  // --- whether anybody is there ---------------------------------------------------------------------------------------

  /** Comes round when nothing may have been heard for `pingAfterMs`. One timer, not one for each message. */
  #watch() {
    const { now, setTimeout } = this.#host;
    const quietMs = Math.max(0, now() - this.#heardAt);
    if (quietMs >= this.#options.pingAfterMs) return this.#probe();
    this.#silenceTimer = setTimeout(() => this.#watch(), this.#options.pingAfterMs - quietMs);
  }

  /** Asks for a sign of life. A browser can send no ping of WebSocket's own, so it is a message. */
  #probe() {
    if (!this.#isOpen() || this.#isProbed) return;
    this.#isProbed = true;
    this.#say({ type: 'ping' });
    this.#host.clearTimeout(this.#silenceTimer);
    this.#silenceTimer = this.#host.setTimeout(
      () => this.#lost({ code: 1006, reason: 'silent' }), this.#options.pongTimeoutMs);
  }

  /** Events of a browser's page. What it says of the network is a hint: the connection itself is asked. */
  #hint = (event) => {
    if (event.type === 'visibilitychange' && this.#host.document.visibilityState !== 'visible') return;
    if (this.#isOpen()) return this.#probe();
    if (this.#state !== 'waiting' || this.#isTold || event.type === 'offline') return;
    // A network that returns brings everybody behind it back at once.
    const delayMs = Math.round(this.#host.random() * this.#options.retryBaseMs);
    this.#wait(delayMs, { code: 1006, reason: event.type, error: null });
  };

  #listenToPage(verb) {
    const { page, document } = this.#host;
    for (const type of ['online', 'offline']) page?.[verb]?.(type, this.#hint);
    document?.[verb]?.('visibilitychange', this.#hint);
  }

  #clearTimers() {
    this.#host.clearTimeout(this.#dialTimer);
    this.#host.clearTimeout(this.#silenceTimer);
    this.#dialTimer = this.#silenceTimer = null;
    this.#isProbed = false;
  }

  // --- what is said and heard -----------------------------------------------------------------------------------------

  #say(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #heard(text) {
    this.#heardAt = this.#host.now();
    if (this.#isProbed) {
      this.#isProbed = false;
      this.#host.clearTimeout(this.#silenceTimer);
      this.#watch();
    }
    const message = parse(text);
    if (!message) {
      const found = String(text).slice(0, 64);
      return this.#complain(new CorecastError('protocol', `found ${found}, a message of the JSON dialect was due`));
    }
    if (message.type === 'pong' && !isPublication(message)) return;
    // Until its 'left' all that comes of a name belongs to the room that was left.
    if (this.#leaving.has(message.room)) return this.#heardOfLeaving(message);
    const room = this.#rooms.get(message.room);
    if (message.type === 'error' && !isPublication(message)) return this.#refused(room, message);
    if (!room) {
      this.#stats.strays += 1;
    } else if (message.type === 'left' && !isPublication(message)) {
      this.#forget(room, 'left');
      room[EMIT]('left', { room: room.name });
    } else {
      room[HEAR](message);
      if (room.state === 'joined') this.#flush(room.name);
    }
  }

  #heardOfLeaving({ type, room: name, data, offset }) {
    const isOut = type === 'left' || (type === 'error' && data?.code === 'not_joined');
    if (offset !== undefined || !isOut) return;
    const leaving = this.#leaving.get(name);
    const tell = leaving.shift();
    if (leaving.length === 0) this.#leaving.delete(name);
    tell();
  }

  /** A connection that is gone has left whatever was being left. */
  #takeLeaving() {
    const leaving = [...this.#leaving.values()].flat();
    this.#leaving.clear();
    return leaving;
  }

  #refused(room, { room: name, data }) {
    const error = new CorecastError(data?.code ?? 'invalid', data?.message ?? 'the server refused a message', {
      room: name, field: data?.field, expected: data?.expected, found: data?.found,
    });
    // While it waits for its 'joined' a room has said nothing but its join.
    if (room?.state === 'joining') this.#forget(room, 'failed', error);
    this.#complain(error, room);
  }

  /** Tells the room's listeners, else the client's. */
  #complain(error, room) {
    this.#stats.errors += 1;
    (room?.[HAS]('error') ? room : this)[EMIT]('error', error);
  }

  #forget(room, state, error) {
    this.#rooms.delete(room.name);
    room[END](state, error);
    const waiting = this.#queue.filter(({ name }) => name === room.name);
    this.#queue = this.#queue.filter(({ name }) => name !== room.name);
    const left = new CorecastError('left', `room ${room.name} was left before this was sent`, { room: room.name });
    for (const { reject } of waiting) reject(error ?? left);
  }

  #flush(name) {
    if (this.#queue.length === 0) return;
    const waiting = this.#queue.filter((entry) => entry.name === name);
    this.#queue = this.#queue.filter((entry) => entry.name !== name);
    for (const { text, resolve } of waiting) {
      this.#socket.send(text);
      resolve();
    }
  }

  #setState(change) {
    const previous = this.#state;
    this.#state = change.state;
    this[EMIT]('state', { previous, ...change });
  }
}

// --- judgements, each of its arguments alone --------------------------------------------------------------------------

function isSame(before, after) {
  return before !== null && after !== null && before.epoch === after.epoch && before.offset === after.offset;
}

/** Codes by which the server itself sends somebody away for a while. */
const TOLD = new Set([1001, 1012, 1013]);

/** Codes after which the same client would only be closed again. */
const FINAL = new Set([1002, 1003, 1007, 1008, 1009, 1010]);

/** 1008 is also how the server ends a connection that it has not heard of: that one slept, and may come back. */
export function invitesBack({ code, reason }) {
  return !FINAL.has(code) || reason === 'pong_timeout';
}

/**
 * How long to stay away after a close, given `random` from [0, 1).
 *
 * Full jitter: anything up to a bound that doubles with each failure. After a restart the bound is no less than what keeps
 * a deploy from being a storm; after an overload it is ten times as high, and at least half of it is waited.
 */
export function waitMs(code, failures, options, random) {
  const doubled = (base) => Math.min(options.retryCapMs, base * 2 ** Math.min(failures, 30));
  if (code === 1013) {
    const bound = doubled(options.overloadBaseMs);
    return bound / 2 + random * bound / 2;
  }
  const bound = doubled(options.retryBaseMs);
  return random * (code === 1001 || code === 1012 ? Math.max(bound, options.restartSpreadMs) : bound);
}

/** An offset makes a publication, whatever its type is called; so does a type that is not the dialect's own. */
function isPublication({ type, offset }) {
  return offset !== undefined || !CONTROL.has(type);
}

const CONTROL = new Set(['joined', 'left', 'gap', 'pong', 'error']);

/** Null for what is no message of the dialect. */
function parse(text) {
  let message;
  try {
    message = JSON.parse(text);
    if (message.encoding === 'base64') message.data = fromBase64(message.data);
  } catch {
    return null;
  }
  const isOne = message && typeof message.type === 'string' && typeof message.room === 'string'
    && (message.offset === undefined || Number.isSafeInteger(message.offset))
    && (message.type !== 'gap' || message.offset !== undefined || message.data);
  return isOne ? asGap(message) : null;
}

/** A publication too long for the dialect is told as an error with its offset: to its room that is a gap of one. */
function asGap(message) {
  const { type, room, data } = message;
  const isLost = type === 'error' && !isPublication(message) && data?.code === 'too_long' && Number.isSafeInteger(data.offset);
  return isLost ? { type: 'gap', room, data: { from: data.offset, to: data.offset, reason: data.code } } : message;
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function bytesOf(text) {
  return new TextEncoder().encode(text).length;
}

/** Without the options that are undefined. */
function given(options = {}) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/** What the server would refuse without saying which join it refused. */
function checkName(name) {
  if (typeof name !== 'string') throw new TypeError(`a room's name is a string, found ${typeof name}`);
  const bytes = bytesOf(name);
  if (bytes < 1 || bytes > 255) throw new RangeError(`a room's name has 1 to 255 bytes of UTF-8, found ${bytes}`);
  if (/\p{Cc}/u.test(name)) throw new RangeError("a room's name holds no control characters");
}

function checkFirst(first) {
  const isOne = [undefined, 'oldest', 'newest'].includes(first) || (Number.isSafeInteger(first) && first >= 0);
  if (!isOne) throw new TypeError(`first is "oldest", "newest" or a number, found ${JSON.stringify(first)}`);
}

function toJson(data) {
  const isBytes = data instanceof ArrayBuffer || ArrayBuffer.isView(data);
  const json = isBytes ? undefined : JSON.stringify(data);
  if (json === undefined) throw new TypeError('found what JSON has no form for: publish null, or bytes as base64');
  return json;
}

// Time, chance and the page; tests have their own. Date.now counts the time that a machine slept, performance.now may not.
const HOST = {
  now: () => Date.now(),
  random: () => Math.random(),
  setTimeout: (callback, delayMs) => setTimeout(callback, delayMs),
  clearTimeout: (timer) => clearTimeout(timer),
  page: globalThis,
  document: globalThis.document,
};
