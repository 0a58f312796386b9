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
while ((await client.queue.status(app, { requestId: running.request_id })).status !== "IN_PROGRESS");
await fails(() => client.queue.result(app, { requestId: running.request_id }), 400);
assert.equal((await client.queue.status(app, { requestId: waiting.request_id })).queue_position, 0);
await client.queue.cancel(app, { requestId: waiting.request_id });
await client.queue.cancel(app, { requestId: running.request_id });
await fails(() => client.queue.result(app, { requestId: waiting.request_id }), 499);
while ((await client.queue.status(app, { requestId: running.request_id })).status !== "COMPLETED");
await fails(() => client.queue.result(app, { requestId: running.request_id }), 499);

// From here on the work is let through.
const seen = [];
const lines = new Set();
const note = (update) => {
  seen.push(update.status);
  (update.logs ?? []).forEach((log) => lines.add(log.message));
};
const made = await client.subscribe(app, {
  input: { image_url: image(), resolution: "512", seed: 5 }, logs: true, onQueueUpdate: note, webhookUrl: hook,
});
assert.ok(made.requestId);
assert.equal(made.data.seed, 5);
assert.equal(made.data.resolution, 512);
assert.equal(Buffer.from(await (await fetch(made.data.model_glb.url)).arrayBuffer()).subarray(0, 4).toString(), "glTF");
assert.equal(seen.at(-1), "COMPLETED");
await fails(() => client.queue.cancel(app, { requestId: made.requestId }), 400);

assert.deepEqual([...lines], ["0 % structure", "100 % asset"]);

const parts = [];
const streamed = await client.subscribe(app, {
  input: { image_url: address }, mode: "streaming", logs: true, onQueueUpdate: (update) => parts.push(update.status),
});
assert.equal(parts.at(-1), "COMPLETED");
assert.equal(streamed.data.model_glb.file_size, 64);

const direct = await client.run(app, { input: { image_url: address, resolution: 1024 } });
assert.equal(direct.data.resolution, 1024);

for (const call of [client.run, client.subscribe]) {
  const wrong = await fails(() => call(app, { input: { image_url: address, resolution: 3 } }), 422);
  assert.equal(wrong.getFieldErrors("resolution")[0].type, "literal_error");
}
await fails(() => client.queue.status(app, { requestId: "00000000-0000-0000-0000-000000000000" }), 404);
await fails(() => client.queue.submit("fal-ai/nothing", { input: {} }), 404);
const stranger = createFalClient({ credentials: "wrong", ...ways[mode] });
await fails(() => stranger.queue.submit(app, { input: {} }), 401);
await fails(() => stranger.storage.upload(image()), 401);
console.log("all good");
process.exit(0);
