// Publishing: what is sent, what waits, what is refused, and that nothing is sent twice.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WebSocket, nextState, setUp, setUpRoom } from './support/client.js';
import { publication } from './support/server.js';

test('a publication goes to its room as it is', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  await room.publish({ text: 'hi', at: 1.5 });
  await client.publish('lobby', null);
  assert.deepEqual(await connection.heard(), { type: 'message', room: 'lobby', data: { text: 'hi', at: 1.5 } });
  assert.deepEqual(await connection.heard(), { type: 'message', room: 'lobby', data: null });
});

test('without its room a publication is refused', async (t) => {
  const { server, client } = await setUp(t);
  const room = client.join('lobby');
  await assert.rejects(room.publish(1), { code: 'offline', room: 'lobby' });
  await server.connection();
  await assert.rejects(room.publish(1), { code: 'offline' });
  await assert.rejects(client.publish('other', 1), { code: 'not_joined' });
  client.close();
  await assert.rejects(room.publish(1), { code: 'closed' });
});

test('those that may wait are sent in order when their room is joined, and no more are taken', async (t) => {
  const { server, client } = await setUp(t, { publishQueueMax: 3 });
  const [a, b] = ['a', 'b'].map((name) => client.join(name));
  const sent = [];
  const publish = (room, data) => room.publish(data).then(() => sent.push(data));
  const all = [publish(a, 1), publish(b, 2), publish(a, 3)];
  await assert.rejects(a.publish(4), { code: 'queue_full' });
  const connection = await server.connection();
  await connection.heard();
  await connection.join();
  await all[1];
  assert.deepEqual(sent, [2], "a's wait for a");
  connection.say({ type: 'joined', room: 'a', data: { epoch: 'e', offset: 0 } });
  await Promise.all(all);
  const heard = [await connection.heard(), await connection.heard(), await connection.heard()];
  assert.deepEqual(heard.map(({ data }) => data), [2, 1, 3]);
});

test('one that waited is sent once, by the connection that comes', async (t) => {
  const { server, clock, client, room, connection } = await setUpRoom(t, { publishQueueMax: 8 });
  await room.publish('before');
  const waiting = nextState(client, 'waiting');
  connection.cut();
  const { delayMs } = await waiting;
  const sent = room.publish('meanwhile');
  clock.advance(delayMs);
  const again = await server.connection();
  await again.join({ epoch: 'e1', offset: 0, recovered: true });
  await sent;
  await room.publish('after');
  assert.deepEqual([(await again.heard()).data, (await again.heard()).data], ['meanwhile', 'after']);
});

test('those that wait for a room that is left, or a client that is closed, are refused', async (t) => {
  const { client } = await setUp(t, { publishQueueMax: 8 });
  const [a, b] = ['a', 'b'].map((name) => client.join(name));
  const refused = [assert.rejects(a.publish(1), { code: 'left' }), assert.rejects(b.publish(1), { code: 'left' })];
  await a.leave();
  client.close();
  await Promise.all(refused);
});

test('one that is too big for the server is refused, and the connection lives', async (t) => {
  const { client, room, connection } = await setUpRoom(t, { messageBytesMax: 100 });
  const around = JSON.stringify({ type: 'message', room: 'lobby', data: '' }).length;
  await assert.rejects(room.publish('é'.repeat((100 - around) / 2 + 1)), { code: 'too_big' });
  await room.publish('x'.repeat(100 - around));
  assert.equal((await connection.heard()).data.length, 100 - around);
  assert.equal(client.state, 'open');
});

test('while too much waits to be sent nothing is added', async (t) => {
  class Full extends WebSocket {
    get bufferedAmount() { return 1001; }
  }
  const full = await setUpRoom(t, { WebSocket: Full, sendBufferBytesMax: 1000 });
  await assert.rejects(full.room.publish(1), { code: 'busy' });
  const fine = await setUpRoom(t, { WebSocket: Full, sendBufferBytesMax: 1001 });
  await fine.room.publish(1);
});

test('what is no JSON is refused', async (t) => {
  const { room } = await setUpRoom(t);
  for (const data of [undefined, new Uint8Array(2), new ArrayBuffer(2), 1n, () => {}]) {
    await assert.rejects(room.publish(data), TypeError);
  }
});

test('a client hears its own as everybody does', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const loop = room[Symbol.asyncIterator]();
  await room.publish('hello');
  connection.say(publication('lobby', 1, (await connection.heard()).data));
  assert.equal((await loop.next()).value.data, 'hello');
});
