// Random runs: whatever breaks, nothing comes twice or out of order, and what does not come was told.
//
//   SEED=17 node --test test/random.test.js        the run of a seed that failed

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Corecast } from '../corecast.js';
import { Clock } from './support/clock.js';
import { World, chance } from './support/world.js';

const SEEDS = process.env.SEED ? [Number(process.env.SEED)] : Array.from({ length: 400 }, (_, index) => index + 1);
const STEPS = 300;

async function run(seed) {
  const random = chance(seed);
  const clock = new Clock();
  const host = { ...clock.host(), random };
  const world = new World(host);
  const client = new Corecast('ws://world/', { host, WebSocket: world.WebSocket });
  const room = client.join('lobby');

  // The numbers of what came, and what may be missing before the next of them.
  const seen = { last: null, count: 0, isGap: false };
  const faults = [];
  room.on('gap', () => { seen.isGap = true; });
  room.on('publication', ({ data }) => {
    const { last, isGap } = seen;
    if (last !== null && data <= last) faults.push(`${data} came after ${last}`);
    if (last !== null && data > last + 1 && !isGap) faults.push(`nobody told of what is between ${last} and ${data}`);
    Object.assign(seen, { last: data, count: seen.count + 1, isGap: false });
  });

  // The room has a reader from here on.
  await null;

  const steps = [
    [60, () => world.publish()],
    [12, () => clock.advance(Math.floor(random() * 2000))],
    [6, () => world.cut()],
    [4, () => world.repeat()],
    [4, () => world.skip()],
    [3, () => world.breakSource()],
    [2, () => world.restart()],
    [2, () => world.silence()],
    [2, () => { world.isDown = !world.isDown; if (world.isDown) world.restart(); }],
    [5, () => clock.advance(60_000)],
  ];
  const weights = steps.reduce((sum, [weight]) => sum + weight, 0);
  for (let step = 0; step < STEPS; step += 1) {
    let at = random() * weights;
    steps.find(([weight]) => (at -= weight) < 0)[1]();
    clock.advance(Math.floor(random() * 5));
  }

  // Once nothing breaks any more the newest comes.
  world.isDown = false;
  clock.advance(120_000);
  world.publish();
  clock.advance(10);
  assert.deepEqual([faults, client.state, seen.last], [[], 'open', world.published], `seed ${seed}`);
  assert.equal(room.stats.received, seen.count);
  client.close();
  clock.advance(120_000);
  assert.equal(clock.timers, 0, `seed ${seed}: timers are left`);
  return { room: room.stats, client: client.stats };
}

test('nothing comes twice or out of order, and what does not come was told', async () => {
  const sum = { received: 0, duplicates: 0, gaps: 0, dropped: 0, lost: 0 };
  for (const seed of SEEDS) {
    const { room, client } = await run(seed);
    for (const key of ['received', 'duplicates', 'gaps', 'dropped']) sum[key] += room[key];
    sum.lost += client.lost;
  }
  // What it is about did happen.
  assert.ok(process.env.SEED || Math.min(sum.duplicates, sum.gaps, sum.lost) > SEEDS.length, JSON.stringify(sum));
});
