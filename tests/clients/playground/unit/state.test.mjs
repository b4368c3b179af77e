import assert from "node:assert/strict";
import test from "node:test";
import { stateOfRequest } from "../../../../router/textmill_router/api/playground/page/docs_request.js";
import { decodeFragment, encodeFragment } from "../../../../router/textmill_router/api/playground/page/fragment.js";
import { contentOf, imagesOf, newState, readState, textOf } from "../../../../router/textmill_router/api/playground/page/state.js";
import { Store } from "../../../../router/textmill_router/api/playground/page/store.js";

function filledState() {
  const state = newState();
  state.messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url: "data:x" } }] },
    { role: "assistant", answers: [{ content: "A 猫.", reasoning: "Hm." }, { content: "", tool_calls: [{ id: "1" }] }] },
    { role: "tool", content: "42", tool_call_id: "1" },
  ];
  Object.assign(state, { draft: "and 🙂?", compare: true, tokens: true, stream: false });
  state.columns[1].parameters.chat = { temperature: 0, stop: ["a"] };
  return state;
}

test("a state survives JSON and a link", async () => {
  const state = filledState();
  assert.deepEqual(readState(JSON.parse(JSON.stringify(state))), state);
  const fragment = await encodeFragment(state);
  assert.match(fragment, /^#state=[\w-]+$/);
  assert.deepEqual((await decodeFragment(fragment)).state, state);
});

test("a link that was cut is refused, and another fragment is none", async () => {
  const fragment = await encodeFragment(filledState());
  await assert.rejects(decodeFragment(fragment.slice(0, -9)), /not whole/);
  assert.equal(await decodeFragment("#turns"), null);
  assert.equal(await decodeFragment(""), null);
});

test("a state of another form is refused with the part that is wrong", () => {
  for (const [value, words] of [
    [[], /object/],
    [{ version: 2 }, /version 2/],
    [{ mode: "poem" }, /mode must be one of chat, completions, generate/],
    [{ messages: "hi" }, /messages must be a list/],
    [{ messages: [{ content: "x" }] }, /messages\[0\] must have a role/],
    [{ messages: [{ role: "user", content: 3 }] }, /content/],
    [{ draft: 4 }, /draft must be a string/],
    [{ columns: [{}, {}, {}] }, /one or two/],
    [{ columns: [{ parameters: { chat: [] } }] }, /columns\[0\].parameters.chat/],
    [{ images: [1] }, /images/],
  ]) {
    assert.throws(() => readState(value), words, JSON.stringify(value));
  }
  assert.deepEqual(readState({ further: 1 }), newState());
});

test("a content is a text alone unless it has images", () => {
  assert.equal(contentOf("a", []), "a");
  const content = contentOf("a", ["data:x"]);
  assert.deepEqual([textOf(content), imagesOf(content)], ["a", ["data:x"]]);
});

test("a request of the API page becomes a state", () => {
  const body = { model: "m", messages: [{ role: "assistant", content: "a" }], temperature: 0, seed: null, stream: true };
  const chat = stateOfRequest({ path: "/v1/chat/completions", body: JSON.stringify(body) });
  assert.deepEqual(chat.messages, [{ role: "assistant", answers: [{ content: "a" }] }]);
  assert.deepEqual([chat.mode, chat.stream, chat.columns[0].model], ["chat", true, "m"]);
  assert.deepEqual(chat.columns[0].parameters.chat, { temperature: 0 });
  const native = stateOfRequest({ path: "/generate", body: '{"inputs": "a", "parameters": {"top_k": 3}}' });
  assert.deepEqual([native.mode, native.prompt, native.stream], ["generate", "a", false]);
  assert.deepEqual(native.columns[0].parameters.generate, { top_k: 3 });
  assert.equal(stateOfRequest({ path: "/v1/completions", body: '{"prompt": "p"}' }).prompt, "p");
  assert.throws(() => stateOfRequest({ path: "/tokenize", body: "{}" }), /does not send/);
  assert.throws(() => stateOfRequest({ path: "/generate", body: "{" }), /not JSON/);
  assert.throws(() => stateOfRequest({ path: "/generate", body: '{"inputs": ["a"]}' }), /one text/);
});

test("changes can be undone, and the tab gets the state back", () => {
  const kept = new Map();
  const keep = { read: (name, fallback) => kept.get(name) ?? fallback, write: (name, value) => kept.set(name, structuredClone(value)) };
  const store = new Store(keep);
  let drawn = 0;
  store.subscribe(() => (drawn += 1));
  store.update((state) => (state.draft = "one"), { canUndo: true });
  store.update((state) => (state.draft = "two"));
  store.save();
  assert.equal(new Store(keep).state.draft, "two");
  store.undo();
  assert.deepEqual([store.state.draft, store.canUndo, drawn], ["", false, 3]);
  kept.set("state", { version: 9 });
  assert.deepEqual(new Store(keep).state, newState());
});
