// Time that passes when a test says so, and chance that is what a test says.

export class Clock {
  #now = 1_000_000;
  #timers = new Map();
  #next = 1;
  /** What `random` answers. */
  chance = 0.5;

  /** The `host` option of a client, with a page where one is given. */
  host({ page, document } = {}) {
    return {
      now: () => this.#now,
      random: () => this.chance,
      setTimeout: (callback, delayMs) => {
        const timer = this.#next++;
        this.#timers.set(timer, { callback, at: this.#now + delayMs });
        return timer;
      },
      clearTimeout: (timer) => this.#timers.delete(timer),
      page,
      document,
    };
  }

  /** Runs what falls due, in order. */
  advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      const [timer, { callback, at }] = due;
      this.#timers.delete(timer);
      this.#now = at;
      callback();
    }
    this.#now = end;
  }

  get timers() {
    return this.#timers.size;
  }
}
