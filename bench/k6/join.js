// Joins a room, says hello and waits until corecast has said it back, as event-fanout's own script does.
//
//   k6 run bench/k6/join.js
//   k6 run -e URL=ws://localhost:8080/ws -e ROOM=lobby -e VUS=200 -e ITERATIONS=2000 bench/k6/join.js
//
// Each iteration is one connection: 101, hello, the echo, a Close of our own.
// A k6 client costs much more than its connection costs corecast: for figures of corecast use corecast-bench.
import ws from 'k6/ws';
import { check } from 'k6';
import { Rate, Trend } from 'k6/metrics';

const URL = __ENV.URL || 'ws://localhost:8081/ws';
const ROOM = __ENV.ROOM || 'k6';
const VUS = Number(__ENV.VUS || 50);
const ITERATIONS = Number(__ENV.ITERATIONS || 500);
const PATIENCE_MS = 5000;

const echoed = new Rate('hello_echoed');
const echoMs = new Trend('hello_echo_ms', true);

export const options = {
  scenarios: {
    join: { executor: 'shared-iterations', vus: VUS, iterations: ITERATIONS, maxDuration: '2m' },
  },
  thresholds: {
    checks: ['rate==1'],
    hello_echoed: ['rate==1'],
    hello_echo_ms: [`p(95)<${__ENV.P95_MS || 250}`],
    ws_connecting: [`p(95)<${__ENV.CONNECT_P95_MS || 1000}`],
  },
};

export default function () {
  const id = `k6-${__VU}-${__ITER}`;
  const hello = `hello from ${id}`;
  let heard = false;

  const response = ws.connect(`${URL}?room=${ROOM}&client_id=${id}`, null, (socket) => {
    let sent = 0;
    socket.on('open', () => {
      sent = Date.now();
      socket.send(hello);
    });
    // Everybody in the room hears every hello; ours is the one that names us.
    socket.on('message', (message) => {
      if (message !== hello) return;
      heard = true;
      echoMs.add(Date.now() - sent);
      socket.close();
    });
    socket.setTimeout(() => socket.close(), PATIENCE_MS);
  });

  echoed.add(heard);
  check(response, { 'status is 101': (r) => r && r.status === 101 });
  check(heard, { 'hello came back': (h) => h });
}
