// The same evaluation by promptfoo, as a Node package: node run_promptfoo.mjs URL FOLDER SAMPLES CONCURRENCY
// Results go to its own SQLite file, one by one (`writeLatestResults`).
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, folder, samples, concurrency] = process.argv.slice(2);
Object.assign(process.env, {
  OLLAMA_BASE_URL: url,
  PROMPTFOO_CONFIG_DIR: folder,
  PROMPTFOO_CACHE_ENABLED: "false",
  PROMPTFOO_DISABLE_TELEMETRY: "1",
  PROMPTFOO_DISABLE_UPDATE: "1",
  PROMPTFOO_DISABLE_REMOTE_GENERATION: "1",
  LOG_LEVEL: "error",
});
const installed = createRequire(`${process.env.PEER_FOLDER}/package.json`);
const entry = installed.resolve("promptfoo").replace(/index\.cjs$/, "index.js");
const { default: promptfoo } = await import(pathToFileURL(entry));

const tests = Array.from({ length: Number(samples) }, (_, number) => ({
  vars: { review: `Parcel ${number} came in time.` },
  assert: [{ type: "equals", value: '{"label": "positive"}' }],
}));
const suite = {
  prompts: ["Is the review positive or negative? Answer as JSON.\n{{review}}"],
  providers: ["ollama:chat:stand-in"],
  tests,
  writeLatestResults: true,
};
const options = { maxConcurrency: Number(concurrency), cache: false, showProgressBar: false };
await promptfoo.evaluate({ ...suite, tests: tests.slice(0, 1) }, options);
const before = process.cpuUsage();
const started = performance.now();
const done = await promptfoo.evaluate(suite, options);
const wall_s = (performance.now() - started) / 1000;
const { user, system } = process.cpuUsage(before);
const summary = await done.toEvaluateSummary();
if (summary.stats.successes !== Number(samples)) {
  throw new Error(JSON.stringify(summary.stats) + JSON.stringify(summary.results[0]).slice(0, 2000));
}
console.log(JSON.stringify({ run: { wall_s, cpu_s: (user + system) / 1e6, samples: Number(samples) } }));
process.exit(0);
