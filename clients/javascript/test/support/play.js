// A client that does what it is told and says what happens to it: the same in Node and in a page, so that one story of the
// server's tests (tests/javascript.rs) is told of both.

/** `plan`: url, options, rooms (a map of name and join options). `say` gets objects that JSON can hold. */
export function play(Corecast, plan, say, more = {}) {
  const client = new Corecast(plan.url, { ...plan.options, ...more });
  client.on('state', ({ error, ...change }) => say({ event: 'state', ...change, error: error ? String(error) : null }));
  client.on('error', ({ code, message }) => say({ event: 'error', code, message }));
  for (const [name, options] of Object.entries(plan.rooms)) {
    const room = client.join(name, options ?? undefined);
    for (const type of ['joined', 'publication', 'gap', 'left', 'overflow']) {
      room.on(type, (event) => say({ event: type, ...event }));
    }
  }
  const commands = {
    publish: ({ room, data }) => client.publish(room, data),
    leave: ({ room }) => client.leave(room),
    close: () => client.close(),
    stats: ({ room }) => client.rooms.get(room).stats,
  };
  /** Does one command, and says how it went. */
  return async (command) => {
    try {
      const result = await commands[command.do](command);
      say({ event: 'done', do: command.do, result: result ?? null });
    } catch (error) {
      say({ event: 'failed', do: command.do, code: error.code ?? String(error) });
    }
  };
}
