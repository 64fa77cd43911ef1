// The Node.js side of the adapter protocol; protocol.py describes it.

import { randomBytes } from "node:crypto";
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";

export const url = process.argv[2];
export const HOLD = 10; // milliseconds that a `hold` sleeps
export const INSERT_ORDER = "insert into bench_orders (note) values ('one order')";

console.log = console.info = console.debug = console.error; // standard output is the protocol's

const now = () => Number(process.hrtime.bigint()); // CLOCK_MONOTONIC; exact for the first 104 days

const cpuNow = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

function emit(event, values = {}) {
  writeSync(1, JSON.stringify({ event, ...values }) + "\n");
}

class Bodies {
  #last;
  #begun = false;
  ran = 0;
  stamps = [];

  constructor(count) {
    this.#last = count;
  }

  noop() {
    this.begin();
    this.end();
  }

  cpu() {
    this.begin();
    // The wall clock: there is one thread, and Node reads its CPU time only to the tick (4 ms).
    const until = now() + 100_000;
    while (now() < until);
    this.end();
  }

  async sleep() {
    this.begin();
    await pause(1);
    this.end();
  }

  stamp(n) {
    this.stamps.push([n, now()]);
    this.begin();
    this.end();
  }

  async hold(n) {
    this.stamps.push([n, now()]);
    this.begin();
    await pause(HOLD);
    this.end();
  }

  begin() {
    if (!this.#begun) {
      this.#begun = true;
      emit("first", { at: now() });
    }
  }

  end() {
    this.ran += 1;
    if (this.ran === this.#last) emit("ran", { at: now() });
  }
}

const payload = (n) => ({ n, to: `user-${n}@example.org` });

/** Of at least `size` bytes of JSON each, padded with what hardly can be compressed. */
function payloads(count, size = 0) {
  const made = Array.from({ length: count }, (_, n) => payload(n));
  if (size) {
    const filler = randomBytes(size / 2 + 1).toString("hex");
    for (const one of made) one.to += filler.slice(0, Math.max(size - JSON.stringify(one).length, 0));
  }
  return made;
}

async function repeat(call, seconds) {
  let count = 0;
  const spent = stopwatch();
  const until = now() + seconds * 1e9;
  while (now() < until) await call(payload(count++));
  return spent(count);
}

function stopwatch() {
  const [began, cpu] = [now(), cpuNow()];
  return (count) => ({ count, seconds: (now() - began) / 1e9, cpu: cpuNow() - cpu });
}

/** Speak the protocol until standard input ends. */
export async function serve(adapter) {
  let bodies;
  const commands = {
    setup: () => adapter.setup(),

    async enqueue_many({ task, count, size }) {
      const made = payloads(count, size);
      const spent = stopwatch();
      await adapter.enqueueMany(task, made);
      return spent(count);
    },

    async enqueue_later({ task, count, seconds }) {
      const made = payloads(count);
      const spent = stopwatch();
      await adapter.enqueueLater(task, made, seconds);
      return spent(count);
    },

    enqueue_for: ({ task, seconds }) => repeat((body) => adapter.enqueue(task, body), seconds),

    transact_for: ({ task, seconds }) => repeat((body) => adapter.transact(task, body), seconds),

    /** Keeps to the time-table: what comes too late is followed by the next at once. */
    async enqueue_paced({ tasks, count, pauses }) {
      const sent = [];
      let due = now();
      for (let n = 0; n < count; n++) {
        due += pauses[n % pauses.length] * 1e9;
        await pause(Math.max((due - now()) / 1e6, 0));
        const body = payload(n);
        sent.push(now());
        await adapter.enqueue(tasks[n % tasks.length], body);
      }
      return { sent };
    },

    async work({ settings, count }) {
      bodies = new Bodies(count);
      await adapter.start(settings, bodies);
    },

    async stop() {
      await adapter.stop();
      return { ran: bodies.ran, stamps: bodies.stamps };
    },
  };

  emit("hello", { versions: `${adapter.versions}, Node ${process.versions.node}` });
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: name, ...values } = JSON.parse(line);
    try {
      emit("done", (await commands[name](values)) ?? {});
    } catch (error) {
      console.error(error);
      emit("failed", { message: String(error) });
    }
  }
  await adapter.close?.();
  process.exit(0);
}
