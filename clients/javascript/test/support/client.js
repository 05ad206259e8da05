// A client under test: on a clock of the test's, against a server of the test's, with the WebSocket of the package ws or,
// with WEBSOCKET=global, with Node's own.

import ws from 'ws';
import { Corecast } from '../../corecast.js';
import { Clock } from './clock.js';
import { Server } from './server.js';

export const WebSocket = process.env.WEBSOCKET === 'global' ? globalThis.WebSocket : ws;

/** For what only the package ws can do: the options of a test. */
export const wsOnly = { skip: WebSocket !== ws && 'wants the package ws' };

/** Server, clock and client; the client is closed when test `t` ends. */
export async function setUp(t, options = {}, page = {}) {
  const server = await Server.start(t);
  const clock = new Clock();
  const client = connect(t, server.url, clock, options, page);
  return { server, clock, client };
}

/** `setUp` with one room that is joined at offset 0 of epoch "e1". */
export async function setUpRoom(t, options = {}, joinOptions = undefined) {
  const parts = await setUp(t, options);
  const room = parts.client.join('lobby', joinOptions);
  const connection = await parts.server.connection();
  await connection.join();
  await room.ready;
  return { ...parts, room, connection };
}

export function connect(t, url, clock, options = {}, page = {}) {
  const client = new Corecast(url, { WebSocket, host: clock.host(page), ...options });
  t.after(() => client.close());
  return client;
}

/** The next event of this type. */
export function next(emitter, type) {
  return new Promise((resolve) => {
    const off = emitter.on(type, (event) => {
      off();
      resolve(event);
    });
  });
}

/** The next time the client is in `state`. */
export function nextState(client, state) {
  return new Promise((resolve) => {
    const off = client.on('state', (change) => {
      if (change.state !== state) return;
      off();
      resolve(change);
    });
  });
}

/** All that comes of these types, in order, as `[type, event]`. */
export function record(emitter, ...types) {
  const events = [];
  for (const type of types) emitter.on(type, (event) => events.push([type, event]));
  return events;
}

/** Waits until publication `offset` has come. */
export function arrival(room, offset) {
  return new Promise((resolve) => {
    const off = room.on('publication', (publication) => {
      if (publication.offset !== offset) return;
      off();
      resolve(publication);
    });
  });
}
