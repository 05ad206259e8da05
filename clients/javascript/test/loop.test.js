// `for await` over a room: nothing lost before it begins, bounded while it is slow, ended when the room is.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arrival, next, nextState, record, setUpRoom } from './support/client.js';
import { left, publication } from './support/server.js';

/** Has the server say these, and waits until the client has heard them. */
async function hear({ client, connection }, ...offsets) {
  const heard = next(client, 'error');
  connection.say(...offsets.map((offset) => publication('lobby', offset)), 'the end');
  await heard;
}

/** Takes what a loop has, until it waits or ends. */
async function take(loop, count) {
  const taken = [];
  for (let index = 0; index < count; index += 1) taken.push((await loop.next()).value?.offset);
  return taken;
}

test('it yields what comes, in order, and ends when the room is left', async (t) => {
  const parts = await setUpRoom(t);
  const seen = [];
  await hear(parts, 1, 2, 3);
  for await (const { offset } of parts.room) {
    seen.push(offset);
    if (offset === 3) parts.connection.say(publication('lobby', 4), left('lobby'));
  }
  assert.deepEqual(seen, [1, 2, 3, 4]);
});

test('what comes before anybody reads waits for the first reader, whichever way it reads', async (t) => {
  const looping = await setUpRoom(t);
  await hear(looping, 1, 2);
  assert.deepEqual(await take(looping.room[Symbol.asyncIterator](), 2), [1, 2]);

  const listening = await setUpRoom(t);
  await hear(listening, 1, 2);
  const came = arrival(listening.room, 3);
  const events = record(listening.room, 'publication');
  await hear(listening, 3);
  await came;
  assert.deepEqual(events.map(([, { offset }]) => offset), [1, 2, 3]);
});

test('what waited is never overtaken by what comes while it is handed over', async (t) => {
  const parts = await setUpRoom(t);
  await hear(parts, 1, 2);
  const seen = [];
  const off = parts.room.on('publication', ({ offset }) => seen.push(offset));
  assert.deepEqual(seen, [], 'the caller has not got what `on` returns');
  await hear(parts, 3);
  off();
  assert.deepEqual(seen, [1, 2, 3]);
});

test('two loops and a listener each get everything', async (t) => {
  const parts = await setUpRoom(t);
  const loops = [0, 1].map(() => parts.room[Symbol.asyncIterator]());
  const events = record(parts.room, 'publication');
  await hear(parts, 1, 2);
  assert.deepEqual([await take(loops[0], 2), await take(loops[1], 2)], [[1, 2], [1, 2]]);
  assert.equal(events.length, 2);
});

test('a loop that is broken off takes and keeps nothing any more', async (t) => {
  const parts = await setUpRoom(t, { bufferMax: 2 });
  await hear(parts, 1);
  for await (const { offset } of parts.room) {
    assert.equal(offset, 1);
    break;
  }
  await hear(parts, 2, 3, 4, 5, 6);
  assert.equal(parts.room.stats.dropped, 0);
});

test('it goes on over a reconnect', async (t) => {
  const parts = await setUpRoom(t);
  const loop = parts.room[Symbol.asyncIterator]();
  await hear(parts, 1);
  const waiting = nextState(parts.client, 'waiting');
  parts.connection.cut();
  parts.clock.advance((await waiting).delayMs);
  const again = await parts.server.connection();
  await again.join({ epoch: 'e1', offset: 1, recovered: true });
  again.say(publication('lobby', 2));
  assert.deepEqual(await take(loop, 2), [1, 2]);
});

test('a slow loop loses the oldest, each counted and told', async (t) => {
  const parts = await setUpRoom(t, { bufferMax: 3 });
  const loop = parts.room[Symbol.asyncIterator]();
  const events = record(parts.room, 'overflow');
  await hear(parts, 1, 2, 3, 4, 5);
  assert.deepEqual(await take(loop, 3), [3, 4, 5]);
  assert.deepEqual(events, [['overflow', { room: 'lobby', dropped: 1 }], ['overflow', { room: 'lobby', dropped: 2 }]]);
  assert.deepEqual(parts.room.stats, { received: 5, duplicates: 0, gaps: 0, dropped: 2 });
});

test('or fails where it should lose nothing, and the room goes on', async (t) => {
  const parts = await setUpRoom(t, { bufferMax: 1e9 }, { bufferMax: 3, overflow: 'fail' });
  const loop = parts.room[Symbol.asyncIterator]();
  const other = parts.room[Symbol.asyncIterator]();
  await hear(parts, 1);
  assert.deepEqual(await take(other, 1), [1]);
  await hear(parts, 2, 3);
  assert.deepEqual(await take(other, 2), [2, 3]);
  await hear(parts, 4);
  assert.deepEqual(await take(loop, 3), [1, 2, 3]);
  await assert.rejects(loop.next(), { code: 'overflow' });
  assert.deepEqual(await loop.next(), { done: true, value: undefined });
  assert.deepEqual(await take(other, 1), [4]);
  assert.equal(parts.room.state, 'joined');
  assert.equal(parts.room.stats.dropped, 1);
});

test('a room that nobody reads keeps no more than a slow loop', async (t) => {
  const parts = await setUpRoom(t, { bufferMax: 2 });
  await hear(parts, 1, 2, 3, 4);
  assert.equal(parts.room.stats.dropped, 2);
  assert.deepEqual(await take(parts.room[Symbol.asyncIterator](), 2), [3, 4]);

  const strict = await setUpRoom(t, { bufferMax: 2, overflow: 'fail' });
  await hear(strict, 1, 2, 3, 4);
  assert.equal(strict.room.stats.dropped, 2);
  const failed = next(strict.room, 'error');
  const events = record(strict.room, 'publication');
  assert.equal((await failed).code, 'overflow');
  assert.deepEqual(events.map(([, { offset }]) => offset), [1, 2]);
});

test('a loop over a room that is over ends, after what it had', async (t) => {
  const parts = await setUpRoom(t);
  await hear(parts, 1);
  parts.room.leave();
  const loop = parts.room[Symbol.asyncIterator]();
  assert.deepEqual(await take(loop, 2), [1, undefined]);
  assert.deepEqual(await parts.room[Symbol.asyncIterator]().next(), { done: true, value: undefined });
});
