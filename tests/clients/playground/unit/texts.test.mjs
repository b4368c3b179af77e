import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import test from "node:test";
import { diffTexts } from "../../../../router/textmill_router/api/playground/page/diff.js";
import { javascript, python, shellText } from "../../../../router/textmill_router/api/playground/page/literals.js";
import { Presets } from "../../../../router/textmill_router/api/playground/page/presets.js";
import { rootOf, Servers, takesImages } from "../../../../router/textmill_router/api/playground/page/servers.js";
import { KINDS, snippet } from "../../../../router/textmill_router/api/playground/page/snippets.js";
import { newState } from "../../../../router/textmill_router/api/playground/page/state.js";
import { percent, probability, ranked, shade, spoken, visible } from "../../../../router/textmill_router/api/playground/page/token_shades.js";

const NASTY = ["it's", '"$(id)" `id` \\', "line\nbreak\ttab", "猫🙂\u2028\u007f", "", "</script>", "%s {x} ${y}"];
const VALUE = { "a b": NASTY, t: true, f: false, n: null, x: -1.5e-7, deep: { list: [[], {}, [1, { k: NASTY[1] }]] } };

test("a shell reads a text as it is", () => {
  for (const text of NASTY) assert.equal(execFileSync("sh", ["-c", `printf %s ${shellText(text)}`]).toString(), text);
});

test("Python reads a value as it is", () => {
  const program = `import json, sys; sys.stdout.buffer.write(json.dumps(${python(VALUE)}).encode())`;
  assert.deepEqual(JSON.parse(execFileSync("python3", ["-c", program]).toString()), VALUE);
});

test("JavaScript reads a value as it is", () => {
  assert.deepEqual(new Function(`return ${javascript(VALUE)}`)(), VALUE);
});

test("a key is a variable in every kind of snippet", () => {
  const request = { path: "/v1/chat/completions", body: { model: "m", messages: [], min_p: 0.1 } };
  for (const { id } of KINDS) {
    assert.match(snippet(id, { request, root: "http://h", hasKey: true }).code, /\bAPI_KEY\b/, id);
    assert.doesNotMatch(snippet(id, { request, root: "http://h", hasKey: false }).code, /API_KEY/, id);
  }
});

test("a client without the call says so", () => {
  const reasons = (path, body) =>
    KINDS.filter(({ id }) => snippet(id, { request: { path, body }, root: "http://h", hasKey: false }).reason).map(({ id }) => id);
  assert.deepEqual(reasons("/v1/completions", { model: "m", prompt: "p" }), ["huggingface_hub"]);
  assert.deepEqual(reasons("/generate", { inputs: "p", parameters: {} }), ["openai-python", "huggingface-js", "openai-js"]);
  assert.deepEqual(reasons("/generate", { inputs: "p", parameters: { min_p: 0.1 } }), ["huggingface_hub", "openai-python", "huggingface-js", "openai-js"]);
});

test("the runs of a difference give both texts again", () => {
  const texts = ["", "a b c", "a x c", "the quick brown fox", "the slow brown dog\n", "猫 is a cat", "a b c a b c"];
  for (const left of texts) {
    for (const right of texts) {
      const runs = diffTexts(left, right);
      const without = (kind) => runs.filter((run) => run.kind !== kind).map((run) => run.text).join("");
      assert.deepEqual([without("right"), without("left")], [left, right]);
    }
  }
  assert.deepEqual(diffTexts("a b c", "a x c"), [
    { kind: "same", text: "a " }, { kind: "left", text: "b" }, { kind: "right", text: "x" }, { kind: "same", text: " c" },
  ]);
  const long = Array.from({ length: 9000 }, (_, index) => `w${index % 7} v${index}`).join(" ");
  const other = `x ${long.replaceAll("w3", "y")} z`;
  assert.deepEqual(diffTexts(long, other), [{ kind: "left", text: long }, { kind: "right", text: other }]);
  const lines = long.replaceAll(" ", "\n").slice(0, 9000).trimEnd();
  assert.equal(diffTexts(lines, `${lines}\nend`).at(-1).text, "\nend");
});

test("tokens have a percentage, a shade and a sentence", () => {
  assert.deepEqual([1, 0.5, 0.01, 0.00001, null].map(percent), ["100 %", "50.0 %", "1.00 %", "< 0.01 %", "no probability"]);
  assert.deepEqual([0, 0.55, 1, null].map(shade), ["p0", "p5", "p9", ""]);
  assert.equal(probability(Math.log(0.25)), 0.25);
  assert.deepEqual([visible("\n"), visible("")], ["↵\n", "∅"]);
  assert.equal(spoken({ text: " ", logprob: 0 }), '" ", 100 %');
  const token = { text: "a", logprob: -2, alternatives: [{ text: "b", logprob: -1 }, { text: "a", logprob: -2 }] };
  assert.deepEqual(ranked(token).map(({ text, isChosen }) => [text, isChosen]), [["b", false], ["a", true]]);
});

function memory() {
  const kept = new Map();
  return { kept, read: (name, fallback) => structuredClone(kept.get(name) ?? fallback), write: (name, value) => (kept.set(name, structuredClone(value)), true) };
}

test("servers are kept in the browser and the page's own key in the tab", () => {
  const [browser, tab] = [memory(), memory()];
  const servers = new Servers("http://own", browser, tab);
  servers.setOwnKey("s3cret");
  const id = servers.add({ name: " ", address: "http://127.0.0.1:8000/v1/", key: " k " });
  servers.add({ name: "Mine", address: "http://127.0.0.1:8000", key: "k2" });
  assert.deepEqual(servers.list().map(({ name, root }) => [name, root]), [["this server", "http://own"], ["Mine", "http://127.0.0.1:8000"]]);
  assert.deepEqual([servers.keyOf(""), servers.keyOf(id), tab.kept.get("key"), JSON.stringify([...browser.kept]).includes("s3cret")], ["s3cret", "k2", "s3cret", false]);
  servers.remove(id);
  assert.equal(servers.find(id), undefined);
});

test("addresses of servers are checked", () => {
  assert.equal(rootOf("https://h/prefix/v1"), "https://h/prefix");
  for (const address of ["", "h:8000", "ftp://h", "http://user:pw@h/v1"]) assert.throws(() => rootOf(address), Error, address);
});

test("images are taken where the server says so", () => {
  assert.equal(takesImages({ id: "m" }, { model_pipeline_tag: "text-generation" }), false);
  assert.equal(takesImages({ input_modalities: ["text", "image"] }, null), true);
  assert.equal(takesImages({}, { model_pipeline_tag: "image-text-to-text" }), true);
});

test("a preset brings parameters and the system message", () => {
  const presets = new Presets(memory());
  const state = newState();
  state.messages = [{ role: "system", content: "Be brief." }];
  state.columns[0].parameters.chat = { temperature: 0 };
  presets.save("cold", state, 0);
  const other = newState();
  other.mode = "generate";
  presets.apply("cold", other, 1);
  assert.deepEqual([other.mode, other.columns[1].parameters.chat, other.messages], ["chat", { temperature: 0 }, state.messages]);
  presets.remove("cold");
  assert.deepEqual(presets.list(), []);
});
