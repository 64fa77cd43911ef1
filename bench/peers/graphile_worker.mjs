// graphile-worker as an adapter: see protocol.py for what it speaks.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

process.env.NO_LOG_SUCCESS = "1"; // read when the package loads
const { Logger, makeWorkerUtils, run, runMigrations, WorkerPreset } = await import("graphile-worker");
const { INSERT_ORDER, serve, url } = await import("./protocol.mjs");

const SETTINGS = {
  default: { concurrentJobs: 10 },
  tuned: {
    concurrentJobs: 24,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};

const quiet = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(level, message);
});

const preset = (worker = {}) => ({
  extends: [WorkerPreset],
  worker: { connectionString: url, logger: quiet, crontabFile: "/nonexistent", ...worker },
});

const ADD_JOB = "select graphile_worker.add_job($1, $2::json)"; // what its manual has for this

let utils;
let runner;
let client;

async function connect() {
  const connection = new (require("pg").Client)({ connectionString: url });
  await connection.connect();
  return connection;
}

async function open() {
  utils ??= await makeWorkerUtils({ preset: preset() });
  return utils;
}

const require = createRequire(import.meta.url);
const packaged = new URL("./node_modules/graphile-worker/package.json", import.meta.url);
const pg = require("pg/package.json").version;

await serve({
  versions: `graphile-worker ${JSON.parse(readFileSync(packaged)).version}, pg ${pg}`,

  async setup() {
    await runMigrations({ preset: preset() });
  },

  async enqueueMany(task, payloads) {
    const { addJobs } = await open();
    await addJobs(payloads.map((payload) => ({ identifier: task, payload })));
  },

  async enqueue(task, payload) {
    const { addJob } = utils ?? (await open());
    await addJob(task, payload);
  },

  async enqueueLater(task, payloads, seconds) {
    const { addJobs } = await open();
    const runAt = new Date(Date.now() + seconds * 1000);
    await addJobs(payloads.map((payload) => ({ identifier: task, payload, runAt })));
  },

  async transact(task, payload) {
    client ??= await connect();
    await client.query("begin");
    await client.query(INSERT_ORDER);
    if (task) await client.query(ADD_JOB, [task, JSON.stringify(payload)]);
    await client.query("commit");
  },

  async start(settings, bodies) {
    const taskList = {
      noop: async () => bodies.noop(),
      sleep: () => bodies.sleep(),
      cpu: async () => bodies.cpu(),
      stamp: async ({ n }) => bodies.stamp(n),
      hold: ({ n }) => bodies.hold(n),
    };
    const options = { preset: preset(SETTINGS[settings]), taskList, noHandleSignals: true };
    runner = await run({ ...options, parsedCronItems: [] });
  },

  async stop() {
    await runner.stop();
  },

  async close() {
    await client?.end();
    await utils?.release();
  },
});
