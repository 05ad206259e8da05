// node server.js PORT REDIS: GET /ws?room=NAME joins a room (/ws?rooms=A,B several); what is published to room:NAME goes to its
// members. GET /echo gets back what it sends.
//
// One process, one thread. Payloads stay buffers from Redis to the socket, so that nothing is decoded or encoded on the way.
import { createServer } from 'node:http';
import { createClient } from 'redis';
import { WebSocketServer } from 'ws';

const PREFIX = 'room:';
const [port, redis] = process.argv.slice(2);
if (!port || !redis) {
  console.error('usage: node server.js PORT HOST:PORT');
  process.exit(2);
}

const rooms = new Map();

function join(room, socket) {
  let members = rooms.get(room);
  if (!members) rooms.set(room, (members = new Set()));
  members.add(socket);
  socket.on('close', () => {
    members.delete(socket);
    if (members.size === 0) rooms.delete(room);
  });
}

const server = createServer((request, response) => response.writeHead(404).end());
// Compression off, as everybody else here; members are in `rooms`, so the server keeps no second list of them.
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, clientTracking: false, maxPayload: 1 << 20 });
server.on('upgrade', (request, socket, head) => {
  const url = new URL(request.url, 'http://localhost');
  const names = url.searchParams.get('room') ? [url.searchParams.get('room')] : url.searchParams.get('rooms')?.split(',');
  const echoes = url.pathname === '/echo';
  if (!echoes && (url.pathname !== '/ws' || !names)) {
    return socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n');
  }
  sockets.handleUpgrade(request, socket, head, (accepted) => {
    accepted.on('error', () => accepted.terminate());
    if (echoes) accepted.on('message', (payload, isBinary) => accepted.send(payload, { binary: isBinary }));
    else for (const name of names) join(name, accepted);
  });
});

const subscriber = createClient({ url: `redis://${redis}` });
subscriber.on('error', (error) => {
  console.error(`redis: ${error.message}`);
  process.exit(69);
});
await subscriber.connect();
const asText = { binary: false };
const deliver = (payload, channel) => {
  const members = rooms.get(channel.toString().slice(PREFIX.length));
  if (members) for (const socket of members) socket.send(payload, asText);
};
// `true`: channel and payload as buffers.
await subscriber.pSubscribe(`${PREFIX}*`, deliver, true);
server.listen({ port: Number(port), host: '127.0.0.1', backlog: 16384 });
