import assert from "node:assert/strict";
import { createServer } from "node:http";
import test from "node:test";
import { metricsOf, timingsOf, tokensPerSecond } from "../../../../router/textmill_router/api/playground/page/metrics.js";
import { whyUnreachable } from "../../../../router/textmill_router/api/playground/page/network.js";
import { canContinue, newRun, perform } from "../../../../router/textmill_router/api/playground/page/runs.js";

globalThis.location = new URL("http://page.example/playground");
const say = (text, more = {}) => `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: text }, ...more }] })}\n\n`;

/** Runs a chat against a server that answers with `respond`, and returns the run. */
async function runAgainst(respond, { streams = true, signal } = {}) {
  const server = createServer(respond).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const run = newRun("chat");
  let changes = 0;
  await perform(run, { url: `http://127.0.0.1:${server.address().port}/`, key: "k", body: {}, streams, signal }, () => (changes += 1));
  server.closeAllConnections();
  server.close();
  assert.ok(changes >= 2);
  return run;
}

test("a stream in pieces that split characters is whole", async () => {
  const run = await runAgainst(async (_, response) => {
    for (const byte of Buffer.from(`: alive\n\n${say("héllo 猫")}${say("", { finish_reason: "stop" })}data: [DONE]\n\n`)) response.write(Buffer.of(byte));
    response.end();
  });
  assert.deepEqual([run.state, run.answer.choices[0].text, run.error], ["done", "héllo 猫", null]);
  assert.equal(canContinue(run), false);
});

test("a stream that ends without its last word has broken, and keeps its text", async () => {
  for (const [respond, words] of [
    [(_, response) => response.end(say("part")), /ended the stream before the end/],
    [(_, response) => (response.write(say("part")), setTimeout(() => response.destroy(), 50)), /connection broke/],
    [(_, response) => response.end(`${say("part")}data: {"cho`), /middle of an event/],
    [(_, response) => response.end(`${say("part")}data: {"error": {"message": "shard died"}}\n\n`), /shard died/],
  ]) {
    const run = await runAgainst(respond);
    assert.deepEqual([run.state, run.answer.choices[0].text, canContinue(run)], ["broken", "part", true]);
    assert.match(run.error, words);
  }
});

test("a stream without [DONE] is whole once each choice has its finish reason", async () => {
  const run = await runAgainst((_, response) => response.end(say("all") + say("", { finish_reason: "stop" })));
  assert.deepEqual([run.state, run.answer.choices[0].text], ["done", "all"]);
});

test("a refusal has the server's words, the status and the wait", async () => {
  const run = await runAgainst((_, response) => {
    response.writeHead(429, { "retry-after": "7" });
    response.end('{"error": {"message": "too many"}}');
  });
  assert.deepEqual([run.state, run.error], ["failed", "429: too many Try again after 7 s."]);
  const native = await runAgainst((_, response) => response.writeHead(401).end('{"error": "no key", "error_type": "x"}'));
  assert.match(native.error, /^401: no key Type the API key/);
});

test("an answer that is cut by a limit can go on, and the user can stop", async () => {
  const cut = await runAgainst((_, response) => response.end(`${say("a", { finish_reason: "length" })}data: [DONE]\n\n`));
  assert.equal(canContinue(cut), true);
  const abort = new AbortController();
  const stopped = await runAgainst((_, response) => (response.write(say("a")), setTimeout(() => abort.abort(), 50)), { signal: abort.signal });
  assert.deepEqual([stopped.state, stopped.answer.choices[0].text, canContinue(stopped)], ["stopped", "a", true]);
});

test("a server that does not answer is explained", () => {
  const page = new URL("http://page.example/playground");
  assert.match(whyUnreachable("/v1", page), /server is down/);
  assert.match(whyUnreachable("http://other.example/v1", page), /CORS.*--cors-allow-origin http:\/\/page.example/);
  assert.match(whyUnreachable("http://other.example/v1", new URL("https://page.example/")), /over https/);
});

test("numbers of a run follow from its times and counts", () => {
  const run = { ...newRun("chat"), startMs: 1000, firstMs: 1250, endMs: 3250 };
  run.answer = { choices: [{ finish: "stop" }], usage: { input: 9, output: 21, cached: 4 }, timings: null };
  assert.deepEqual(Object.fromEntries(metricsOf(run)), {
    "time to first token": "250 ms", "total time": "2.25 s", "tokens/s": "10", "tokens in": "9", "tokens out": "21", "cached tokens": "4",
    "finish reason": "stop",
  });
  assert.equal(tokensPerSecond({ ...run, firstMs: null }, 3100), 10);
  assert.equal(tokensPerSecond({ ...run, firstMs: 3249 }, 3250), 21 / 2.25);
  assert.deepEqual(timingsOf({ ...run, answer: { timings: { queue_ms: 0.123, prefill_ms: 500, cached_tokens: 3 } } }), [["queue", "0.12 ms"], ["prefill", "500 ms"], ["cached tokens", "3"]]);
});
