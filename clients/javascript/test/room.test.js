// A room: its order, its position, and what the application is told of what did not come.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arrival, next, nextState, record, setUp, setUpRoom } from './support/client.js';
import { gap, joined, left, publication } from './support/server.js';

/** Breaks the connection and returns the next one. */
async function comeBack({ server, clock, client, connection }) {
  const waiting = nextState(client, 'waiting');
  connection.cut();
  clock.advance((await waiting).delayMs);
  return server.connection();
}

const offsets = (events) => events.map(([type, { offset }]) => (type === 'publication' ? offset : type));

test('a newcomer is told where it begins', async (t) => {
  const { server, client } = await setUp(t);
  const room = client.join('lobby');
  assert.deepEqual([room.name, room.state, room.position], ['lobby', 'joining', null]);
  const told = next(room, 'joined');
  await (await server.connection()).join({ epoch: 'e1', offset: 17 });
  const expected = { room: 'lobby', recovered: null, epoch: 'e1', offset: 17 };
  assert.deepEqual(await told, expected);
  assert.deepEqual(await room.ready, expected);
  assert.deepEqual([room.state, room.position], ['joined', { epoch: 'e1', offset: 17 }]);
});

test('a publication comes with its place, its type and its data', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const came = arrival(room, 1);
  connection.say({ type: 'price_update', room: 'lobby', data: { price: 1.5 }, offset: 1 });
  assert.deepEqual(await came, { room: 'lobby', type: 'price_update', data: { price: 1.5 }, epoch: 'e1', offset: 1 });
  assert.deepEqual(room.position, { epoch: 'e1', offset: 1 });
});

test('octets come as octets', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const came = arrival(room, 1);
  connection.say({ type: 'message', room: 'lobby', data: 'AP+A', encoding: 'base64', offset: 1 });
  assert.deepEqual((await came).data, new Uint8Array([0x00, 0xff, 0x80]));
});

test('an offset makes a publication, whatever its type is called', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const events = record(room, 'publication', 'left', 'gap', 'error', 'joined');
  const came = arrival(room, 6);
  const types = ['joined', 'left', 'gap', 'error', 'pong', 'message'];
  connection.say(...types.map((type, index) => ({ type, room: 'lobby', data: null, offset: index + 1 })));
  await came;
  assert.deepEqual(offsets(events), [1, 2, 3, 4, 5, 6]);
});

test('a last value without an offset comes and moves nothing', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const came = next(room, 'publication');
  connection.say({ type: 'price_update', room: 'lobby', data: 1 });
  assert.equal((await came).offset, null);
  assert.deepEqual(room.position, { epoch: 'e1', offset: 0 });
});

test('nothing is delivered twice or out of order', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const events = record(room, 'publication');
  const came = arrival(room, 9);
  for (const offset of [1, 2, 2, 1, 5, 4, 9]) connection.say(publication('lobby', offset));
  await came;
  assert.deepEqual(offsets(events), [1, 2, 5, 9]);
  assert.deepEqual(room.stats, { received: 4, duplicates: 3, gaps: 0, dropped: 0 });
});

test('rooms have places of their own', async (t) => {
  const { server, client } = await setUp(t);
  const [a, b] = ['a', 'b'].map((name) => client.join(name));
  const connection = await server.connection();
  await connection.join({ epoch: 'ea', offset: 5 });
  await connection.join({ epoch: 'eb', offset: 90 });
  const came = arrival(b, 91);
  connection.say(publication('a', 6), publication('b', 6), publication('b', 91));
  await came;
  assert.deepEqual([a.position, b.position], [{ epoch: 'ea', offset: 6 }, { epoch: 'eb', offset: 91 }]);
});

test('after a reconnect a room goes on behind what it has, and nothing comes twice', async (t) => {
  const parts = await setUpRoom(t);
  const { room } = parts;
  const events = record(room, 'publication', 'joined', 'gap');
  const came = arrival(room, 2);
  parts.connection.say(publication('lobby', 1), publication('lobby', 2));
  await came;
  const again = await comeBack(parts);
  assert.deepEqual(await again.heard(), { type: 'join', room: 'lobby', resume: { epoch: 'e1', offset: 2 } });
  assert.equal(room.state, 'joining');
  const rest = arrival(room, 4);
  again.say(joined('lobby', { epoch: 'e1', offset: 2, recovered: true }));
  again.say(...[1, 2, 3, 4].map((offset) => publication('lobby', offset)));
  await rest;
  assert.deepEqual(offsets(events), [1, 2, 'joined', 3, 4]);
  assert.deepEqual(events[2][1], { room: 'lobby', recovered: true, epoch: 'e1', offset: 2 });
});

test('what can not be recovered is a gap: of a known range in the same epoch, of an unknown one in another', async (t) => {
  for (const [answer, from, to] of [
    [{ epoch: 'e1', offset: 9, recovered: false }, 3, 9],
    [{ epoch: 'e2', offset: 9, recovered: false }, null, null],
    [{ epoch: 'e1', offset: 1, recovered: false }, null, null],
  ]) {
    const parts = await setUpRoom(t);
    const { room } = parts;
    const came = arrival(room, 2);
    parts.connection.say(publication('lobby', 2));
    await came;
    const events = record(room, 'joined', 'gap', 'publication');
    const again = await comeBack(parts);
    await again.join(answer);
    const rest = arrival(room, answer.offset + 1);
    again.say(publication('lobby', answer.offset + 1));
    await rest;
    assert.deepEqual(events.map(([type]) => type), ['joined', 'gap', 'publication']);
    assert.equal(events[0][1].recovered, false);
    assert.deepEqual(events[1][1], { room: 'lobby', reason: 'not_recovered', epoch: answer.epoch, from, to });
    assert.equal(room.stats.gaps, 1);
  }
});

test('a room where nothing happened meanwhile is whole, recovered or not', async (t) => {
  const parts = await setUpRoom(t);
  const events = record(parts.room, 'joined', 'gap');
  const again = await comeBack(parts);
  const told = next(parts.room, 'joined');
  await again.join({ epoch: 'e1', offset: 0 });
  assert.equal((await told).recovered, true);
  assert.equal(events.length, 1);
});

test('a server that numbers nothing is read all the same, and each reconnect is a gap', async (t) => {
  const { server, clock, client } = await setUp(t);
  const room = client.join('lobby', { first: 'oldest' });
  const connection = await server.connection();
  await connection.join(null);
  const came = next(room, 'publication');
  connection.say({ type: 'message', room: 'lobby', data: 'a' });
  assert.deepEqual(await came, { room: 'lobby', type: 'message', data: 'a', epoch: null, offset: null });
  const again = await comeBack({ server, clock, client, connection });
  const told = next(room, 'gap');
  assert.deepEqual(await again.join(null), { type: 'join', room: 'lobby' });
  assert.deepEqual(await told, { room: 'lobby', reason: 'not_recovered', epoch: null, from: null, to: null });
});

test('a gap is told once, and is what a reconnect goes on behind', async (t) => {
  const parts = await setUpRoom(t);
  const { room, connection } = parts;
  const events = record(room, 'publication', 'gap');
  const came = arrival(room, 8);
  connection.say(publication('lobby', 1));
  connection.say(gap('lobby', { epoch: 'e1', from: 2, to: 4, reason: 'slow' }));
  connection.say(gap('lobby', { epoch: 'e1', from: 2, to: 4, reason: 'slow' }));
  connection.say(publication('lobby', 3));
  connection.say(gap('lobby', { epoch: 'e1', from: 4, to: 7, reason: 'shard_overload' }));
  connection.say(publication('lobby', 8));
  await came;
  assert.deepEqual(offsets(events), [1, 'gap', 'gap', 8]);
  assert.deepEqual(events[1][1], { room: 'lobby', reason: 'slow', epoch: 'e1', from: 2, to: 4 });
  assert.deepEqual(events[2][1], { room: 'lobby', reason: 'shard_overload', epoch: 'e1', from: 5, to: 7 });

  const told = next(room, 'gap');
  connection.say(gap('lobby', { epoch: 'e1', from: 9, to: 12, reason: 'slow' }));
  await told;
  const again = await comeBack(parts);
  assert.deepEqual((await again.heard()).resume, { epoch: 'e1', offset: 12 });
});

test('a publication that is too long for the dialect is a gap of one', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const events = record(room, 'publication', 'gap', 'error');
  const came = arrival(room, 3);
  const data = { code: 'too_long', message: 'too long', offset: 2 };
  connection.say(publication('lobby', 1), { type: 'error', room: 'lobby', data }, publication('lobby', 3));
  await came;
  assert.deepEqual(offsets(events), [1, 'gap', 3]);
  assert.deepEqual(events[1][1], { room: 'lobby', reason: 'too_long', epoch: 'e1', from: 2, to: 2 });
});

test('a source that broke begins a new epoch', async (t) => {
  const parts = await setUpRoom(t);
  const { room, connection } = parts;
  const events = record(room, 'publication', 'gap');
  const came = arrival(room, 3);
  const broken = gap('lobby', { epoch: 'e2', offset: 2, reason: 'broker' });
  connection.say(publication('lobby', 2), broken, publication('lobby', 3));
  assert.equal((await came).epoch, 'e2');
  assert.deepEqual(offsets(events), [2, 'gap', 3]);
  assert.deepEqual(events[1][1], { room: 'lobby', reason: 'broker', epoch: 'e2', from: null, to: null });
  const again = await comeBack(parts);
  assert.deepEqual((await again.heard()).resume, { epoch: 'e2', offset: 3 });
});

test('what a newcomer wished is asked until it was joined, and never again', async (t) => {
  const parts = await setUp(t);
  parts.client.join('lobby', { first: 'oldest' });
  const connection = await parts.server.connection();
  assert.equal((await connection.heard()).first, 'oldest');
  const again = await comeBack({ ...parts, connection });
  const message = await again.join({ epoch: 'e1', offset: 3 });
  assert.deepEqual(message, { type: 'join', room: 'lobby', first: 'oldest' });
  await parts.client.rooms.get('lobby').ready;
  const third = await comeBack({ ...parts, connection: again });
  assert.deepEqual(await third.heard(), { type: 'join', room: 'lobby', resume: { epoch: 'e1', offset: 3 } });
});

test('a position that was kept is gone on from', async (t) => {
  const { server, client } = await setUp(t);
  const room = client.join('lobby', { resume: { epoch: 'e1', offset: 40 } });
  const told = next(room, 'joined');
  const message = await (await server.connection()).join({ epoch: 'e1', offset: 40, recovered: true });
  assert.deepEqual(message.resume, { epoch: 'e1', offset: 40 });
  assert.equal((await told).recovered, true);
});

test('an option that is undefined is not given', async (t) => {
  const { room, connection } = await setUpRoom(t, { bufferMax: undefined }, { bufferMax: undefined, first: undefined });
  const loop = room[Symbol.asyncIterator]();
  connection.say(publication('lobby', 1));
  await arrival(room, 1);
  assert.equal((await loop.next()).value.offset, 1);
  assert.equal(room.stats.dropped, 0);
});

test('joining again is the same room, and not with other wishes', async (t) => {
  const { client, room } = await setUpRoom(t);
  assert.equal(client.join('lobby'), room);
  assert.throws(() => client.join('lobby', { first: 'oldest' }), /joined already/);
  assert.equal(client.rooms.get('lobby'), room);
});

test('a room that is joined while the connection is open is asked for at once', async (t) => {
  const { client, connection } = await setUpRoom(t);
  client.join('other', { first: 'newest' });
  assert.deepEqual(await connection.heard(), { type: 'join', room: 'other', first: 'newest' });
});

test('what the server would not understand is refused here', async (t) => {
  const { client } = await setUp(t);
  for (const name of ['', 'é'.repeat(128), 'a\nb', 'a\u0085b']) assert.throws(() => client.join(name), RangeError);
  assert.throws(() => client.join(7), TypeError);
  for (const first of ['all', -1, 1.5, null]) assert.throws(() => client.join('lobby', { first }), TypeError);
  assert.equal(client.join('é'.repeat(127)).state, 'joining');
});

test('a join that is refused fails its room and is not tried again', async (t) => {
  const parts = await setUp(t);
  const [full, fine] = ['full', 'fine'].map((name) => parts.client.join(name));
  const looped = assert.rejects(full[Symbol.asyncIterator]().next(), { code: 'too_many_rooms' });
  const connection = await parts.server.connection();
  const refused = next(full, 'error');
  await connection.heard();
  connection.say({ type: 'error', room: 'full', data: { code: 'too_many_rooms', message: 'one room more than 64' } });
  await connection.join();
  const error = await refused;
  assert.deepEqual([error.code, error.message, error.room], ['too_many_rooms', 'one room more than 64', 'full']);
  await assert.rejects(full.ready, error);
  await looped;
  await fine.ready;
  assert.equal(full.state, 'failed');
  const again = await comeBack({ ...parts, connection });
  assert.equal((await again.heard()).room, 'fine');
});

test('an error is told to its room, else to the client, and ends neither', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  const ofClient = next(client, 'error');
  const data = { code: 'invalid', field: 'price', found: '"1"', expected: 'a number', message: 'found "1"' };
  connection.say({ type: 'error', room: 'lobby', data });
  const error = await ofClient;
  assert.deepEqual([error.code, error.field, error.found, error.expected], ['invalid', 'price', '"1"', 'a number']);
  const events = record(client, 'error');
  const ofRoom = next(room, 'error');
  connection.say({ type: 'error', room: 'lobby', data });
  await ofRoom;
  assert.deepEqual([events.length, room.state, client.state], [0, 'joined', 'open']);
});

test('what is no message is an error, and the next one is read', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  const errors = record(client, 'error');
  const came = arrival(room, 1);
  const wrong = [
    '{', '[]', 'null', '{"type":"message"}', '{"type":1,"room":"lobby"}',
    '{"type":"m","room":"lobby","offset":1e300}', '{"type":"gap","room":"lobby","data":null}',
    '{"type":"m","room":"lobby","data":"%","encoding":"base64","offset":1}',
  ];
  connection.say(...wrong, publication('lobby', 1));
  await came;
  assert.deepEqual(errors.map(([, error]) => error.code), wrong.map(() => 'protocol'));
});

test('leaving ends the room here at once and is done when the server says so', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  const events = record(room, 'publication', 'left');
  const loop = room[Symbol.asyncIterator]();
  const leaving = room.leave();
  assert.deepEqual([room.state, client.rooms.size], ['left', 0]);
  assert.deepEqual(await loop.next(), { done: true, value: undefined });
  assert.deepEqual(await connection.heard(), { type: 'leave', room: 'lobby' });
  connection.say(publication('lobby', 1), left('lobby'));
  await leaving;
  assert.deepEqual(events, [['left', { room: 'lobby' }]]);
  await room.leave();
});

test('a room that is joined again while it is left hears nothing of before', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  const leaving = room.leave();
  const anew = client.join('lobby');
  assert.notEqual(anew, room);
  const events = record(anew, 'publication', 'joined', 'left', 'error');
  connection.say(publication('lobby', 1), { type: 'error', room: 'lobby', data: { code: 'invalid' } }, left('lobby'));
  await leaving;
  assert.equal((await connection.heard()).type, 'leave');
  await connection.join({ epoch: 'e1', offset: 1 });
  const came = arrival(anew, 2);
  connection.say(publication('lobby', 2));
  await came;
  assert.deepEqual(offsets(events), ['joined', 2]);
});

test('a room that the server did not know of is left as well', async (t) => {
  const { room, connection } = await setUpRoom(t);
  const leaving = room.leave();
  connection.say({ type: 'error', room: 'lobby', data: { code: 'not_joined' } });
  await leaving;
});

test('what was being left when the connection broke is left, and not joined again', async (t) => {
  const parts = await setUpRoom(t);
  parts.client.join('other');
  const leaving = parts.room.leave();
  const again = await comeBack(parts);
  await leaving;
  assert.deepEqual(await again.heard(), { type: 'join', room: 'other' });
});

test('a room is left without a connection', async (t) => {
  const { client } = await setUp(t);
  const room = client.join('lobby');
  const told = next(room, 'left');
  await room.leave();
  await told;
  await assert.rejects(room.ready, { code: 'left' });
});

test('a server may end a membership', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  const told = next(room, 'left');
  connection.say(left('lobby'));
  await told;
  assert.deepEqual([room.state, client.rooms.size], ['left', 0]);
});

test('what comes for rooms that nobody joined here is counted', async (t) => {
  const { client, room, connection } = await setUpRoom(t);
  const came = arrival(room, 1);
  connection.say(joined('other', null), publication('other', 1), publication('lobby', 1));
  await came;
  assert.equal(client.stats.strays, 2);
});
