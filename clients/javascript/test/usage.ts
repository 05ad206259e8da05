// How the client is used, for the compiler: it is checked and never run.

import WS from 'ws';
import {
  Corecast, CorecastError, DEFAULTS, invitesBack, waitMs,
  type Gap, type Joined, type Publication, type Room, type StateChange,
} from '@corecast/client';

interface Price { instrument: string; price: number }

// The global WebSocket, and that of the package ws.
new Corecast('ws://localhost:8080/ws');
new Corecast(new URL('ws://localhost:8080/ws'), { WebSocket });
const client = new Corecast(async () => `ws://localhost:8080/ws?token=${await token()}`, {
  WebSocket: WS,
  protocols: [],
  retry: ({ code, reason }) => (code === 1008 ? reason === 'pong_timeout' : undefined),
  publishQueueMax: 100,
  overflow: 'fail',
});
declare function token(): Promise<string>;

client.on('state', (change: StateChange) => {
  if (change.state === 'waiting') console.log(change.delayMs + change.code, change.reason.length);
  if (change.state === 'closed') console.log(change.error?.close?.code);
  // @ts-expect-error only a client that waits says how long
  console.log(change.delayMs);
});
const off: () => void = client.on('error', (error: CorecastError) => console.log(error.code, error.field));
off();

const prices: Room<Price> = client.join<Price>('AAPL', { first: 10 });
const joined: Joined = await prices.ready;
console.log(joined.recovered === null, joined.epoch?.length);
prices.on('publication', ({ data, offset }) => console.log(data.price.toFixed(2), offset ?? 0));
prices.on('gap', ({ from, to, reason }: Gap) => console.log(from ?? '?', to ?? '?', reason));
prices.on('left', ({ room }) => console.log(room));
prices.on('overflow', ({ dropped }) => console.log(dropped + prices.stats.duplicates));
for await (const publication of prices) {
  const same: Publication<Price> = publication;
  console.log(same.data.instrument, same.epoch);
}
const position = prices.position;
if (position) client.join('AAPL', { resume: position, bufferMax: 10, overflow: 'drop-oldest' });
const sent: Promise<void> = prices.publish({ bid: 1 });
await sent.catch((error: unknown) => error instanceof CorecastError && error.code === 'offline');
await prices.leave();
console.log(client.rooms.get('AAPL')?.state === 'joined', client.stats.lost, await client.closed);
client.close();

const untyped = client.join('lobby');
untyped.on('publication', ({ data }) => {
  // @ts-expect-error nobody said what it is
  console.log(data.price);
});
// @ts-expect-error there is no such event
untyped.on('message', () => {});
// @ts-expect-error there is no such wish
client.join('lobby', { first: 'all' });
// @ts-expect-error rooms come from a client
new (untyped.constructor as typeof Room)();
// @ts-expect-error what it tells is not to be changed
untyped.stats.received = 0;

console.log(invitesBack({ code: 1008, reason: '' }), waitMs(1006, 3, DEFAULTS, Math.random()));
