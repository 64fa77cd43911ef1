// pg-boss as an adapter: see protocol.py for what it speaks.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { PgBoss } from "pg-boss";
import { INSERT_ORDER, serve, url } from "./protocol.mjs";

const SETTINGS = {
  default: { batchSize: 10, burstWhenBatchFull: true },
  tuned: { batchSize: 500, localConcurrency: 2, burstWhenBatchFull: true },
};
const TASKS = ["noop", "sleep", "cpu", "stamp", "hold"];

const require = createRequire(import.meta.url);
const packaged = new URL("./node_modules/pg-boss/package.json", import.meta.url);
const pg = require("pg/package.json").version;

let boss;
let client;

/** A producer neither supervises nor schedules, nor listens. */
async function open(server = false) {
  if (boss) return boss;
  const roles = { supervise: server, schedule: server, useListenNotify: server };
  boss = new PgBoss({ connectionString: url, ...roles });
  boss.on("error", console.error);
  await boss.start();
  return boss;
}

async function connect() {
  const connection = new (require("pg").Client)({ connectionString: url });
  await connection.connect();
  return connection;
}

await serve({
  versions: `pg-boss ${JSON.parse(readFileSync(packaged)).version}, pg ${pg}`,

  async setup() {
    await open();
    for (const task of TASKS) await boss.createQueue(task, { notify: true });
  },

  async enqueueMany(task, payloads) {
    await open();
    await boss.insert(task, payloads.map((data) => ({ data })));
  },

  async enqueueLater(task, payloads, seconds) {
    await open();
    await boss.insert(task, payloads.map((data) => ({ data, startAfter: seconds })));
  },

  async enqueue(task, payload) {
    await (boss ?? (await open())).send(task, payload);
  },

  async transact(task, payload) {
    await open();
    client ??= await connect();
    const db = { executeSql: (text, values) => client.query(text, values) };
    await client.query("begin");
    await client.query(INSERT_ORDER);
    if (task) await boss.send(task, payload, { db });
    await client.query("commit");
  },

  async start(settings, bodies) {
    const each = {
      noop: () => bodies.noop(),
      sleep: () => bodies.sleep(),
      cpu: () => bodies.cpu(),
      stamp: ({ data }) => bodies.stamp(data.n),
      hold: ({ data }) => bodies.hold(data.n),
    };
    await open(true);
    for (const task of TASKS) {
      await boss.work(task, SETTINGS[settings], (jobs) => Promise.all(jobs.map(each[task])));
    }
  },

  async stop() {
    await boss.stop({ graceful: true, timeout: 10_000 });
  },

  async close() {
    await client?.end();
  },
});
