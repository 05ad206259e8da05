// node peer.js PLAN: a client in this process. What it says are lines of JSON on stdout, what it is told on stdin; it ends
// with stdin.

import { createInterface } from 'node:readline';
import WebSocket from 'ws';
import { Corecast } from '../corecast.js';
import { play } from './support/play.js';

const plan = JSON.parse(process.argv[2]);
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const act = play(Corecast, plan, say, { WebSocket });
createInterface({ input: process.stdin }).on('line', (line) => act(JSON.parse(line))).on('close', () => process.exit());
