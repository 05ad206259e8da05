// How long a client stays away, and whether it comes back at all: judgements without a clock.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEFAULTS, invitesBack, waitMs } from '../corecast.js';

/** Least and greatest time. */
const range = (code, failures, options = DEFAULTS) => [0, 1].map((random) => waitMs(code, failures, options, random));

test('the time away is anything up to a bound that doubles with each failure', () => {
  const bounds = [0, 1, 2, 3, 4, 5].map((failures) => range(1006, failures));
  assert.deepEqual(bounds, [[0, 500], [0, 1000], [0, 2000], [0, 4000], [0, 8000], [0, 16_000]]);
});

test('it is never above the cap, however long the server is gone', () => {
  for (const failures of [6, 7, 100, 1e6]) assert.deepEqual(range(1006, failures), [0, 30_000]);
});

test('a restart spreads its clients over some seconds, and no failure makes that less', () => {
  for (const code of [1001, 1012]) {
    assert.deepEqual(range(code, 0), [0, 5000]);
    assert.deepEqual(range(code, 5), [0, 16_000]);
    assert.deepEqual(range(code, 0, { ...DEFAULTS, restartSpreadMs: 60_000 }), [0, 60_000]);
  }
});

test('an overloaded server is left alone for longer, and never asked again at once', () => {
  assert.deepEqual(range(1013, 0), [2500, 5000]);
  assert.deepEqual(range(1013, 1), [5000, 10_000]);
  assert.deepEqual(range(1013, 9), [15_000, 30_000]);
});

test('who would only be closed again does not come back', () => {
  const comesBack = (code) => invitesBack({ code, reason: '' });
  assert.deepEqual([1002, 1003, 1007, 1008, 1009, 1010].filter(comesBack), []);
  const others = [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000];
  assert.deepEqual(others.filter(comesBack), others);
});

test('a client that the server had not heard of was asleep and comes back', () => {
  assert.equal(invitesBack({ code: 1008, reason: 'pong_timeout' }), true);
});
