// The connection: how it is had, lost and had again.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { Corecast } from '../corecast.js';
import { Clock } from './support/clock.js';
import { WebSocket, connect, next, nextState, record, setUp, wsOnly } from './support/client.js';
import { Server, left, publication } from './support/server.js';

/** The state that follows when the server ends its next connection so. */
async function closedWith({ server, client }, code, reason = '', state = 'waiting') {
  const connection = await server.connection();
  const change = nextState(client, state);
  connection.close(code, reason);
  return change;
}

test('it offers the subprotocol and joins what was asked for before it was open', async (t) => {
  const { server, client } = await setUp(t);
  client.join('a');
  client.join('b', { first: 5 });
  const connection = await server.connection();
  assert.equal(connection.protocol, 'corecast.v1.json');
  assert.deepEqual(await connection.heard(), { type: 'join', room: 'a' });
  assert.deepEqual(await connection.heard(), { type: 'join', room: 'b', first: 5 });
  assert.equal(client.state, 'open');
});

test('it offers no subprotocol where there is none', async (t) => {
  const { server } = await setUp(t, { protocols: [] });
  assert.equal((await server.connection()).protocol, '');
});

test('a connection that broke comes back after its time and not before', async (t) => {
  const { server, clock, client } = await setUp(t);
  const connection = await server.connection();
  const waiting = nextState(client, 'waiting');
  connection.cut();
  const { delayMs, code, previous } = await waiting;
  assert.deepEqual({ delayMs, code, previous }, { delayMs: 250, code: 1006, previous: 'open' });
  clock.advance(249);
  assert.equal(client.state, 'waiting');
  clock.advance(1);
  assert.equal(client.state, 'connecting');
  await nextState(client, 'open');
  assert.deepEqual({ opened: client.stats.opened, lost: client.stats.lost }, { opened: 2, lost: 1 });
});

test('each attempt in vain doubles the bound', async (t) => {
  const { server, clock, client } = await setUp(t);
  await server.connection();
  const delays = [];
  let waiting = nextState(client, 'waiting');
  server.stop();
  for (let attempt = 0; attempt < 9; attempt += 1) {
    const { delayMs } = await waiting;
    delays.push(delayMs);
    waiting = nextState(client, 'waiting');
    clock.advance(delayMs);
  }
  assert.deepEqual(delays, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
});

test('only a connection that lasted a minute makes the failures before it forgotten', async (t) => {
  const { server, clock, client } = await setUp(t, { pingAfterMs: 1e9 });
  let delayMs = 0;
  const after = async (lastedMs) => {
    const opened = nextState(client, 'open');
    clock.advance(delayMs);
    const connection = await server.connection();
    await opened;
    clock.advance(lastedMs);
    const waiting = nextState(client, 'waiting');
    connection.cut();
    ({ delayMs } = await waiting);
    return delayMs;
  };
  assert.equal(await after(0), 250);
  assert.equal(await after(59_999), 500);
  assert.equal(await after(60_000), 250);
  assert.equal(await after(0), 500);
});

test('a restart and an overload keep it away for as long as they should', async (t) => {
  for (const [code, delayMs] of [[1001, 2500], [1012, 2500], [1013, 3750], [1011, 250]]) {
    const parts = await setUp(t);
    assert.equal((await closedWith(parts, code)).delayMs, delayMs, `${code}`);
  }
});

test('a close that invites nobody back ends the client, its rooms and its loops, with the reason', async (t) => {
  for (const code of [1002, 1003, 1007, 1008, 1009]) {
    const parts = await setUp(t);
    const room = parts.client.join('lobby');
    const looped = assert.rejects(room[Symbol.asyncIterator]().next(), { code: 'disconnected' });
    const errors = record(parts.client, 'error');
    const { error } = await closedWith(parts, code, 'publish_not_allowed', 'closed');
    assert.deepEqual([error.code, error.close.code, error.close.reason], ['disconnected', code, 'publish_not_allowed']);
    assert.equal(await parts.client.closed, error);
    assert.equal(room.state, 'failed');
    await looped;
    await assert.rejects(room.ready, error);
    await assert.rejects(room.publish(1), { code: 'closed' });
    assert.deepEqual(errors, [['error', error]]);
    assert.equal(parts.clock.timers, 0);
  }
});

test('a server that did not hear of it for too long has it back', async (t) => {
  const { state } = await closedWith(await setUp(t), 1008, 'pong_timeout');
  assert.equal(state, 'waiting');
});

test('the application may say otherwise, both ways, or nothing', async (t) => {
  const retry = ({ code }) => ({ 1008: true, 1011: false })[code];
  assert.equal((await closedWith(await setUp(t, { retry }), 1008)).state, 'waiting');
  assert.equal((await closedWith(await setUp(t, { retry }), 1011, '', 'closed')).error.code, 'disconnected');
  assert.equal((await closedWith(await setUp(t, { retry }), 1012)).state, 'waiting');
});

test('a silent server is asked, and given up when it does not answer', async (t) => {
  const { server, clock, client } = await setUp(t);
  const opened = nextState(client, 'open');
  const connection = await server.connection();
  await opened;
  clock.advance(24_999);
  const waiting = nextState(client, 'waiting');
  clock.advance(1);
  assert.deepEqual(await connection.heard(), { type: 'ping' });
  clock.advance(9_999);
  assert.equal(client.state, 'open');
  clock.advance(1);
  assert.equal((await waiting).reason, 'silent');
  await connection.closed;
});

test('a pong is a sign of life, and is asked for again after as much silence', async (t) => {
  const { server, clock, client } = await setUp(t);
  const opened = nextState(client, 'open');
  const connection = await server.connection();
  await opened;
  for (let round = 0; round < 3; round += 1) {
    clock.advance(25_000);
    assert.deepEqual(await connection.heard(), { type: 'ping' });
    connection.say({ type: 'pong', room: '', data: null }, 'not JSON');
    // The error comes after the pong.
    await next(client, 'error');
  }
  clock.advance(24_999);
  assert.equal(client.state, 'open');
});

test('while anything comes nothing is asked', async (t) => {
  const { server, clock, client } = await setUp(t);
  client.join('lobby');
  const connection = await server.connection();
  for (let round = 0; round < 10; round += 1) {
    connection.say('noise');
    await next(client, 'error');
    clock.advance(20_000);
  }
  assert.equal((await connection.heard()).type, 'join');
  client.leave('lobby');
  assert.equal((await connection.heard()).type, 'leave', 'there was no ping before it');
});

test('a server that takes the connection and never answers is given up', async (t) => {
  const mute = createServer(() => {}).listen(0, '127.0.0.1');
  await once(mute, 'listening');
  t.after(() => mute.close());
  const taken = once(mute, 'connection');
  const clock = new Clock();
  const client = connect(t, `ws://127.0.0.1:${mute.address().port}`, clock);
  const waiting = nextState(client, 'waiting');
  const [socket] = await taken;
  t.after(() => socket.destroy());
  clock.advance(10_000);
  assert.equal((await waiting).reason, 'connect_timeout');
});

test('a connection that is given up is not waited for', wsOnly, async (t) => {
  const { server, clock, client } = await setUp(t);
  const opened = nextState(client, 'open');
  const connection = await server.connection();
  await opened;
  clock.advance(35_000);
  assert.equal((await connection.closed).code, 1006, 'there was no Close frame');

  const mute = createServer(() => {}).listen(0, '127.0.0.1');
  await once(mute, 'listening');
  t.after(() => mute.close());
  const taken = once(mute, 'connection');
  connect(t, `ws://127.0.0.1:${mute.address().port}`, clock);
  const [socket] = await taken;
  clock.advance(10_000);
  await once(socket.resume(), 'close');
});

test('a refused handshake is told with what the WebSocket said', wsOnly, async (t) => {
  const server = await Server.start(t, { verifyClient: (_, answer) => answer(false, 401) });
  const client = connect(t, server.url, new Clock());
  assert.match(String((await nextState(client, 'waiting')).error), /401/);
});

test('a URL may be asked for anew before each attempt, and may fail', async (t) => {
  const server = await Server.start(t);
  const clock = new Clock();
  const answers = [() => `${server.url}1`, () => Promise.reject(new Error('no token')), async () => `${server.url}2`];
  const client = connect(t, () => answers.shift()(), clock);
  const connection = await server.connection();
  assert.equal(connection.path, '/1');
  let waiting = nextState(client, 'waiting');
  connection.cut();
  const { delayMs } = await waiting;
  waiting = nextState(client, 'waiting');
  clock.advance(delayMs);
  const failed = await waiting;
  assert.deepEqual([failed.reason, failed.error.message, failed.delayMs], ['no_url', 'no token', 500]);
  clock.advance(500);
  assert.equal((await server.connection()).path, '/2');
});

test('a URL that comes too late is not used', async (t) => {
  const server = await Server.start(t);
  const clock = new Clock();
  const late = Promise.withResolvers?.() ?? (() => {
    const parts = {};
    parts.promise = new Promise((resolve) => { parts.resolve = resolve; });
    return parts;
  })();
  const answers = [() => late.promise, () => `${server.url}second`];
  const client = connect(t, () => answers.shift()(), clock);
  clock.advance(10_000);
  assert.equal(client.state, 'waiting');
  late.resolve(`${server.url}first`);
  await late.promise;
  clock.advance(250);
  assert.equal((await server.connection()).path, '/second');
  await nextState(client, 'open').catch(() => {});
  assert.equal(server.waiting, 0);
});

test('a URL that is none is refused at once, or ends the client when it comes later', async (t) => {
  const clock = new Clock();
  assert.throws(() => new Corecast('http//nowhere', { WebSocket, host: clock.host() }), { name: 'SyntaxError' });
  assert.equal(clock.timers, 0);
  const client = connect(t, () => 'http//nowhere', clock);
  assert.equal((await client.closed).code, 'url');
});

test('without a WebSocket it says where to get one', () => {
  assert.throws(() => new Corecast('ws://localhost/', { WebSocket: null }), /package ws/);
});

test('an event that there is not is refused with those that there are', async (t) => {
  const { client } = await setUp(t);
  assert.throws(() => client.on('message', () => {}), /no event "message", but state, error/);
});

test('a listener that throws disturbs neither the others nor the client', async (t) => {
  const { client } = await setUp(t);
  const uncaught = [];
  const { queueMicrotask } = globalThis;
  t.mock.method(globalThis, 'queueMicrotask', (callback) => queueMicrotask(() => {
    try {
      callback();
    } catch (error) {
      uncaught.push(error.message);
    }
  }));
  client.on('state', ({ state }) => { if (state === 'open') throw new Error('a fault of the application'); });
  const opened = nextState(client, 'open');
  await opened;
  assert.equal(client.state, 'open');
  assert.deepEqual(uncaught, ['a fault of the application']);
});

test('close says goodbye and leaves nothing behind', async (t) => {
  const page = Object.assign(new EventTarget(), { left: [] });
  page.removeEventListener = (type) => page.left.push(type);
  const { server, clock, client } = await setUp(t, {}, { page, document: undefined });
  const room = client.join('lobby');
  const connection = await server.connection();
  await connection.join();
  await room.ready;
  client.close();
  client.close();
  assert.equal((await connection.closed).code, 1005);
  assert.equal(await client.closed, null);
  assert.deepEqual([client.state, room.state, client.rooms.size, clock.timers], ['closed', 'left', 0, 0]);
  assert.deepEqual(page.left, ['online', 'offline']);
  assert.equal(client.join('lobby').state, 'failed');
});

test('whatever it is told of, an application may close, join, leave and publish in that moment', async (t) => {
  const moments = ['open', 'waiting', 'connecting', 'retry', 'joined', 'publication', 'left'];
  for (const moment of moments) {
    let meddle = () => {};
    const { server, clock, client } = await setUp(t, { retry: () => void (moment === 'retry' && meddle()) });
    const room = client.join('lobby');
    const other = client.join('other');
    meddle = () => {
      client.join('third').publish(1).catch(() => {});
      client.leave('lobby');
      client.close();
    };
    client.on('state', ({ state }) => state === moment && meddle());
    for (const type of ['joined', 'publication']) room.on(type, () => moment === type && meddle());
    other.on('left', () => moment === 'left' && meddle());
    const connection = await server.connection();
    await connection.join();
    await connection.join();
    connection.say(publication('lobby', 1));
    if (moment !== 'open' && moment !== 'joined') {
      await other.ready;
      if (moment === 'left') other.leave();
      else if (moment !== 'publication') connection.cut();
      if (moment === 'left') connection.say(left('other'));
      if (moment === 'connecting') clock.advance((await nextState(client, 'waiting')).delayMs);
    }
    await client.closed;
    assert.deepEqual([client.state, client.rooms.size, clock.timers], ['closed', 0, 0], moment);
  }
});

test('close while it waits or connects ends that', async (t) => {
  const { server, clock, client } = await setUp(t);
  const connection = await server.connection();
  const waiting = nextState(client, 'waiting');
  connection.cut();
  await waiting;
  client.close();
  assert.equal(clock.timers, 0);
  const other = connect(t, server.url, clock);
  other.close();
  assert.equal(clock.timers, 0);
});

// --- what a browser says of its page and network ----------------------------------------------------------------------

function browser() {
  const document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  return { page: new EventTarget(), document };
}

test('a network that is back, and a page that is looked at again, cut the waiting short', async (t) => {
  for (const type of ['online', 'visibilitychange']) {
    const parts = browser();
    const { server, clock, client } = await setUp(t, { retryBaseMs: 1000, overloadBaseMs: 1 }, parts);
    server.stop();
    let waiting = nextState(client, 'waiting');
    for (let attempt = 0; attempt < 5; attempt += 1) {
      const { delayMs } = await waiting;
      waiting = nextState(client, 'waiting');
      clock.advance(delayMs);
    }
    assert.ok((await waiting).delayMs >= 15_000);
    waiting = nextState(client, 'waiting');
    (type === 'online' ? parts.page : parts.document).dispatchEvent(new Event(type));
    assert.deepEqual([(await waiting).delayMs, clock.timers], [500, 1]);
  }
});

test('neither cuts short what the server asked for', async (t) => {
  for (const code of [1001, 1012, 1013]) {
    const parts = browser();
    const { server, client } = await setUp(t, {}, parts);
    await closedWith({ server, client }, code);
    const changes = record(client, 'state');
    parts.page.dispatchEvent(new Event('online'));
    parts.document.dispatchEvent(new Event('visibilitychange'));
    assert.deepEqual(changes, [], `${code}`);
  }
});

test('a network that went, and a page that is looked at again, have the connection asked', async (t) => {
  for (const type of ['offline', 'online', 'visibilitychange']) {
    const parts = browser();
    const { server, client } = await setUp(t, {}, parts);
    const opened = nextState(client, 'open');
    const connection = await server.connection();
    await opened;
    (type === 'visibilitychange' ? parts.document : parts.page).dispatchEvent(new Event(type));
    assert.deepEqual(await connection.heard(), { type: 'ping' });
  }
});

test('a page that is hidden, and a network that goes while it waits, change nothing', async (t) => {
  const parts = browser();
  const { server, clock, client } = await setUp(t, {}, parts);
  const { delayMs } = await closedWith({ server, client }, 1011);
  const changes = record(client, 'state');
  parts.document.visibilityState = 'hidden';
  parts.document.dispatchEvent(new Event('visibilitychange'));
  parts.page.dispatchEvent(new Event('offline'));
  assert.deepEqual(changes, []);
  clock.advance(delayMs);
  await server.connection();
});
