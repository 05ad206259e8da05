// A server without sockets whose logs are short and whose connections break, in the time of a test's clock: for random runs.

import { gap, joined, publication } from './server.js';

const LATENCY_MS = 1;
/** What a log keeps. */
const KEPT = 8;

/** Numbers from [0, 1) that a seed repeats (mulberry32). */
export function chance(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class World {
  #host;
  #epochs = 1;
  // Of room "lobby": what was published there, known to the server or not, and what the server's log says of it.
  published = 0;
  #log = { epoch: 'e1', head: 0, entries: [] };
  #sockets = new Set();
  isDown = false;

  constructor(host) {
    this.#host = host;
  }

  /** The class to give to a client. */
  get WebSocket() {
    const world = this;
    return class {
      bufferedAmount = 0;
      isSilent = false;
      isMember = false;

      constructor() {
        world.#later(() => (world.isDown ? this.onclose?.({ code: 1006, reason: '' }) : world.#open(this)));
      }

      send(text) {
        world.#later(() => world.#heard(this, JSON.parse(text)));
      }

      close() {
        world.#sockets.delete(this);
      }
    };
  }

  publish() {
    this.published += 1;
    if (this.isDown) return;
    const { entries } = this.#log;
    entries.push({ offset: (this.#log.head += 1), data: this.published });
    if (entries.length > KEPT) entries.shift();
    for (const socket of this.#members()) this.#say(socket, this.#frame(entries.at(-1)));
  }

  /** What is published next does not come to any member that is behind. */
  skip() {
    const { epoch, head } = this.#log;
    const sockets = this.#members();
    for (const socket of sockets) socket.isMember = false;
    this.publish();
    this.publish();
    for (const socket of sockets) {
      socket.isMember = true;
      if (!this.isDown) this.#say(socket, gap('lobby', { epoch, from: head + 1, to: head + 2, reason: 'slow' }));
    }
  }

  /** Says again what was said. */
  repeat() {
    for (const socket of this.#members()) for (const entry of this.#log.entries) this.#say(socket, this.#frame(entry));
  }

  /** The source breaks: publications are lost before they have a number. */
  breakSource() {
    this.published += 2;
    this.#log = { ...this.#log, epoch: this.#epoch(), entries: [] };
    const { epoch, head: offset } = this.#log;
    for (const socket of this.#members()) this.#say(socket, gap('lobby', { epoch, offset, reason: 'broker' }));
  }

  /** The process goes, and its logs with it. */
  restart() {
    this.cut(1012);
    this.#log = { epoch: this.#epoch(), head: 0, entries: [] };
  }

  cut(code = 1006) {
    for (const socket of this.#sockets) this.#later(() => socket.onclose?.({ code, reason: '' }));
    this.#sockets.clear();
  }

  /** From now on nothing passes on the connections that are there. */
  silence() {
    for (const socket of this.#sockets) socket.isSilent = true;
  }

  #members() {
    return [...this.#sockets].filter((socket) => socket.isMember);
  }

  #epoch() {
    return `e${(this.#epochs += 1)}`;
  }

  #frame({ offset, data }) {
    return publication('lobby', offset, data);
  }

  #open(socket) {
    this.#sockets.add(socket);
    socket.onopen?.();
  }

  #heard(socket, { type, resume }) {
    if (!this.#sockets.has(socket) || socket.isSilent) return;
    if (type === 'ping') return this.#say(socket, { type: 'pong', room: '', data: null });
    const { epoch, head, entries } = this.#log;
    const oldest = entries[0]?.offset ?? head + 1;
    const recovered = resume && resume.epoch === epoch && resume.offset <= head && resume.offset + 1 >= oldest;
    socket.isMember = true;
    this.#say(socket, joined('lobby', { epoch, offset: recovered ? resume.offset : head, ...(resume && { recovered }) }));
    if (recovered) {
      for (const entry of entries.filter(({ offset }) => offset > resume.offset)) this.#say(socket, this.#frame(entry));
    }
  }

  #say(socket, message) {
    if (socket.isSilent) return;
    this.#later(() => socket.onmessage?.({ data: JSON.stringify(message) }));
  }

  #later(callback) {
    this.#host.setTimeout(callback, LATENCY_MS);
  }
}
