// The life of the official JavaScript client against the service: node fal_life.mjs URL MODE KEY PICTURE HOOK
import assert from "node:assert/strict";
import fal from "@fal-ai/client";

const [url, mode, key, picture, hook] = process.argv.slice(2);
const app = "fal-ai/trellis-2-lora";
const hosts = { "queue.fal.run": "/queue", "fal.run": "/run", "rest.fal.ai": "/rest", "rest.alpha.fal.ai": "/rest", "v3.fal.media": "/cdn" };
const here = (address) => {
  const parts = new URL(address);
  return parts.host in hosts ? url + hosts[parts.host] + parts.pathname + parts.search : address;
};
const ways = {
  middleware: { requestMiddleware: async (request) => ({ ...request, url: here(request.url) }) },
  fetch: { fetch: (address, init) => fetch(here(String(address)), init) },
  proxy: { proxyUrl: { url: `${url}/proxy`, when: "always" } },
};
const { createFalClient } = fal;
const client = createFalClient({ credentials: key, ...ways[mode] });
const bytes = Buffer.from(picture, "base64");
const image = () => new Blob([bytes], { type: "image/png" });

const fails = async (call, status) => {
  try {
    await call();
  } catch (error) {
    assert.equal(error.status, status, String(error.message));
    return error;
  }
  assert.fail(`no error ${status}`);
};

// The whole shape of every answer: exactly these keys, with values of these kinds.
const text = (value) => typeof value === "string" && value.length > 0;
const whole = (value) => Number.isInteger(value) && value >= 0;
const absolute = (value) => text(value) && Boolean(new URL(value));
const isLog = (log) =>
  text(log.message) && log.source === "USER" && ["ERROR", "INFO"].includes(log.level) && !Number.isNaN(Date.parse(log.timestamp));
const isLogs = (logs) => logs === null || (Array.isArray(logs) && logs.every(isLog));
const named = { status: text, request_id: text, response_url: absolute, status_url: absolute, cancel_url: absolute };
const took = (metrics) => metrics.inference_time === null || metrics.inference_time >= 0;
const ended = { logs: isLogs, metrics: (m) => shaped({ inference_time: () => took(m) }, m) };
const kinds = {
  IN_QUEUE: { ...named, queue_position: whole },
  IN_PROGRESS: { ...named, logs: isLogs },
  COMPLETED: { ...named, ...ended },
  FAILED: { ...named, ...ended, error: text, error_type: text },
  file: { url: absolute, content_type: (v) => v === "model/gltf-binary", file_name: (v) => v.endsWith(".glb"), file_size: whole },
};
const optional = (value) => value === null || text(value);
const data = {
  seed: whole, resolution: whole, decimation_target: whole, texture_size: whole, sparse_structure_lora_url: optional,
  geometry_lora_url: optional, texture_lora_url: optional, model_glb: (made) => shaped(kinds.file, made),
};
const shaped = (kind, value) => {
  assert.deepEqual(Object.keys(value).sort(), Object.keys(kind).sort());
  for (const [key, holds] of Object.entries(kind)) assert.ok(holds(value[key]), `${key}: ${JSON.stringify(value[key])}`);
  return value;
};
const isState = (state) => shaped(kinds["error" in state ? "FAILED" : state.status], state);
const status = async (requestId, logs) => isState(await client.queue.status(app, { requestId, logs }));
const isMade = (made) => text(made.requestId) && shaped(data, made.data);

const address = await client.storage.upload(image());
assert.deepEqual(Buffer.from(await (await fetch(address)).arrayBuffer()), bytes);

if (mode === "fetch") {
  const big = Buffer.alloc((91 << 20) + 5, "parts"); // above 90 MiB the client sends parts
  const whole = await client.storage.upload(new Blob([big], { type: "application/octet-stream" }));
  assert.ok(Buffer.from(await (await fetch(whole)).arrayBuffer()).equals(big));
}

// One that runs, one that waits: early result, positions, cancel of both.
const running = await client.queue.submit(app, { input: { image_url: address } });
const waiting = await client.queue.submit(app, { input: { image_url: address } });
for (const submitted of [running, waiting]) {
  assert.equal(shaped(kinds.IN_QUEUE, submitted).status, "IN_QUEUE");
  assert.equal(submitted.queue_position, 0); // the first one begins at once
}
while ((await status(running.request_id)).status !== "IN_PROGRESS");
while ((await status(running.request_id, true)).logs[0]?.message !== "0 % structure");
const early = await fails(() => client.queue.result(app, { requestId: running.request_id }), 400);
shaped({ detail: text }, early.body);
assert.equal((await status(waiting.request_id)).queue_position, 0);
await client.queue.cancel(app, { requestId: waiting.request_id });
await client.queue.cancel(app, { requestId: running.request_id });
const gone = await fails(() => client.queue.result(app, { requestId: waiting.request_id }), 499);
shaped({ detail: text, error_type: (type) => type === "client_cancelled" }, gone.body);
while ((await status(running.request_id)).status !== "COMPLETED");
assert.equal((await status(running.request_id, true)).error_type, "client_cancelled");
await fails(() => client.queue.result(app, { requestId: running.request_id }), 499);

// From here on the work is let through.
const seen = [];
const lines = new Set();
const note = (update) => {
  seen.push(isState(update).status);
  (update.logs ?? []).forEach((log) => lines.add(log.message));
};
const made = await client.subscribe(app, {
  input: { image_url: image(), resolution: "512", seed: 5 }, logs: true, onQueueUpdate: note, webhookUrl: hook,
});
assert.ok(isMade(made));
assert.equal(made.data.seed, 5);
assert.equal(made.data.resolution, 512);
assert.equal(Buffer.from(await (await fetch(made.data.model_glb.url)).arrayBuffer()).subarray(0, 4).toString(), "glTF");
assert.equal(seen.at(-1), "COMPLETED");
await fails(() => client.queue.cancel(app, { requestId: made.requestId }), 400);

assert.deepEqual([...lines], ["0 % structure", "100 % asset"]);

const parts = [];
const streamed = await client.subscribe(app, {
  input: { image_url: address }, mode: "streaming", logs: true, onQueueUpdate: (update) => parts.push(isState(update).status),
});
assert.equal(parts.at(-1), "COMPLETED");
assert.ok(isMade(streamed));
assert.equal(streamed.data.model_glb.file_size, 64);

const direct = await client.run(app, { input: { image_url: address, resolution: 1024 } });
assert.ok(isMade(direct));
assert.equal(direct.data.resolution, 1024);

for (const call of [client.run, client.subscribe]) {
  const wrong = await fails(() => call(app, { input: { image_url: address, resolution: 3 } }), 422);
  for (const entry of shaped({ detail: Array.isArray }, wrong.body).detail) {
    shaped({ loc: Array.isArray, msg: text, type: text, input: () => true, ctx: () => true }, { ctx: null, ...entry });
  }
  assert.equal(wrong.getFieldErrors("resolution")[0].type, "literal_error");
}
const unknown = await fails(() => client.queue.status(app, { requestId: "00000000-0000-0000-0000-000000000000" }), 404);
shaped({ detail: text }, unknown.body);
await fails(() => client.queue.submit("fal-ai/nothing", { input: {} }), 404);
const stranger = createFalClient({ credentials: "wrong", ...ways[mode] });
await fails(() => stranger.queue.submit(app, { input: {} }), 401);
await fails(() => stranger.storage.upload(image()), 401);
console.log("all good");
process.exit(0);
