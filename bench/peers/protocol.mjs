// The Node.js side of the adapter protocol; protocol.py describes it.

import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";

export const url = process.argv[2];

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

  stamp(n) {
    this.stamps.push([n, now()]);
    this.begin();
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

function stopwatch() {
  const [began, cpu] = [now(), cpuNow()];
  return (count) => ({ count, seconds: (now() - began) / 1e9, cpu: cpuNow() - cpu });
}

/** Speak the protocol until standard input ends. */
export async function serve(adapter) {
  let bodies;
  const commands = {
    setup: () => adapter.setup(),

    async enqueue_many({ task, count }) {
      const payloads = Array.from({ length: count }, (_, n) => payload(n));
      const spent = stopwatch();
      await adapter.enqueueMany(task, payloads);
      return spent(count);
    },

    async enqueue_for({ task, seconds }) {
      let count = 0;
      const spent = stopwatch();
      const until = now() + seconds * 1e9;
      while (now() < until) await adapter.enqueue(task, payload(count++));
      return spent(count);
    },

    async enqueue_paced({ task, pauses }) {
      const sent = [];
      for (const [n, seconds] of pauses.entries()) {
        await pause(seconds * 1000);
        const body = payload(n);
        sent.push(now());
        await adapter.enqueue(task, body);
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
