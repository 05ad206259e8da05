// A server of the package ws that says what a test tells it to, on a port that the kernel chooses.

import { once } from 'node:events';
import { WebSocketServer } from 'ws';

/** Things that come one by one and are taken one by one, in order. Who waits in vain is ended by the test's time-out. */
class Arrivals {
  #items = [];
  #takers = [];

  push(item) {
    const taker = this.#takers.shift();
    if (taker) taker(item);
    else this.#items.push(item);
  }

  take() {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    return new Promise((resolve) => this.#takers.push(resolve));
  }

  get length() {
    return this.#items.length;
  }
}

export class Server {
  #sockets;
  #connections = new Arrivals();

  /** Gone when test `t` is. */
  static async start(t, options = {}) {
    const server = new Server();
    server.#sockets = new WebSocketServer({ host: '127.0.0.1', port: 0, ...options });
    server.#sockets.on('connection', (socket, request) => server.#connections.push(new Connection(socket, request)));
    await once(server.#sockets, 'listening');
    t.after(() => server.stop());
    return server;
  }

  get port() {
    return this.#sockets.address().port;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/`;
  }

  /** The next connection that was made. */
  connection() {
    return this.#connections.take();
  }

  /** Connections that nobody has looked at. */
  get waiting() {
    return this.#connections.length;
  }

  stop() {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#sockets.close();
  }
}

export class Connection {
  #socket;
  #messages = new Arrivals();

  constructor(socket, request) {
    this.#socket = socket;
    this.path = request.url;
    this.protocol = socket.protocol;
    this.closed = once(socket, 'close').then(([code, reason]) => ({ code, reason: reason.toString() }));
    socket.on('message', (data) => this.#messages.push(JSON.parse(data.toString())));
    socket.on('error', () => socket.terminate());
  }

  /** The next message of the client. */
  heard() {
    return this.#messages.take();
  }

  say(...messages) {
    for (const message of messages) this.#socket.send(typeof message === 'string' ? message : JSON.stringify(message));
  }

  /** Answers the join that comes next; returns it. */
  async join(data = { epoch: 'e1', offset: 0 }) {
    const message = await this.heard();
    this.say(joined(message.room, data));
    return message;
  }

  close(code, reason) {
    this.#socket.close(code, reason);
  }

  /** Ends TCP without a Close frame. */
  cut() {
    this.#socket.terminate();
  }
}

export const joined = (room, data) => ({ type: 'joined', room, data });
export const left = (room) => ({ type: 'left', room, data: null });
export const gap = (room, data) => ({ type: 'gap', room, data });
export const publication = (room, offset, data = `at ${offset}`) => ({ type: 'message', room, data, offset });
