import assert from "node:assert/strict";
import test from "node:test";
import { buildRequest, pendingMessages, whyNotReady } from "../../../../router/textmill_router/api/playground/page/requests.js";
import { newState } from "../../../../router/textmill_router/api/playground/page/state.js";

function chat(...messages) {
  const state = newState();
  state.messages = messages;
  state.columns[0].model = "m";
  return state;
}
const user = (content) => ({ role: "user", content });
const assistant = (...texts) => ({ role: "assistant", answers: texts.map((content) => ({ content })) });

test("only changed parameters are sent, and what the page needs for the counts", () => {
  const state = chat(user("hi"));
  const messages = [{ role: "user", content: "hi" }];
  const plain = { model: "m", messages, stream: true, stream_options: { include_usage: true } };
  assert.deepEqual(buildRequest(state, 0), { path: "/v1/chat/completions", body: plain });
  state.columns[0].parameters.chat = { temperature: 0, stream_options: { include_usage: false } };
  const body = { ...plain, temperature: 0, stream_options: { include_usage: false } };
  assert.deepEqual(buildRequest(state, 0).body, body);
  state.stream = false;
  assert.deepEqual(buildRequest(state, 0).body, { model: "m", messages, temperature: 0 });
});

test("each column sends its own answers, model and parameters", () => {
  const state = chat(user("a"), assistant("one", "two"), user("b"));
  Object.assign(state.columns[1], { model: "n" });
  state.columns[1].parameters.chat = { seed: 3 };
  const sent = [0, 1].map((column) => buildRequest(state, column).body);
  assert.deepEqual(sent.map((body) => body.messages[1]), [{ role: "assistant", content: "one" }, { role: "assistant", content: "two" }]);
  assert.deepEqual(sent.map((body) => [body.model, body.seed]), [["m", undefined], ["n", 3]]);
  state.messages[1] = assistant("typed");
  assert.equal(buildRequest(state, 1).body.messages[1].content, "typed");
});

test("without a draft the last answer is asked for again", () => {
  const state = chat(user("a"), assistant("one"));
  assert.deepEqual(pendingMessages(state), [user("a")]);
  state.draft = "b";
  assert.deepEqual(pendingMessages(state).at(-1), user("b"));
  state.images = ["data:x"];
  assert.equal(pendingMessages(state).at(-1).content[1].image_url.url, "data:x");
  assert.equal(whyNotReady(newState()), "Write a message first.");
  assert.equal(whyNotReady({ ...newState(), mode: "generate" }), "Write a prompt first.");
  assert.equal(whyNotReady(state), null);
});

test("a cut answer is the last message, which the model continues", () => {
  const body = buildRequest(chat(user("a")), 0, { continues: "So f", messages: [user("a")] }).body;
  assert.deepEqual(body.messages.at(-1), { role: "assistant", content: "So f" });
  assert.deepEqual([body.continue_final_message, body.add_generation_prompt], [true, false]);
  const raw = { ...newState(), mode: "completions", prompt: "One" };
  assert.equal(buildRequest(raw, 0, { continues: " two" }).body.prompt, "One two");
});

test("the token view asks for probabilities in the words of each route", () => {
  const state = { ...chat(user("a")), tokens: true, prompt: "p" };
  const { logprobs, top_logprobs } = buildRequest(state, 0).body;
  assert.deepEqual([logprobs, top_logprobs], [true, 5]);
  state.mode = "completions";
  assert.equal(buildRequest(state, 0).body.logprobs, 5);
  state.mode = "generate";
  const request = buildRequest(state, 0);
  assert.deepEqual(request, { path: "/generate_stream", body: { inputs: "p", parameters: { details: true, top_n_tokens: 5 } } });
  state.columns[0].parameters.generate = { top_n_tokens: 2 };
  state.stream = false;
  assert.deepEqual(buildRequest(state, 0), { path: "/generate", body: { inputs: "p", parameters: { details: true, top_n_tokens: 2 } } });
});

test("timings are asked of a server that takes the field", () => {
  assert.deepEqual(buildRequest(chat(user("a")), 0, { takesTimings: true }).body.textmill, { timings: true });
});

test("tool calls go back to the server", () => {
  const calls = [{ id: "1", type: "function", function: { name: "f", arguments: "{}" } }];
  const state = chat(user("a"), { role: "assistant", answers: [{ content: "", tool_calls: calls }] }, { role: "tool", content: "1", tool_call_id: "1" });
  assert.deepEqual(buildRequest(state, 0).body.messages[1], { role: "assistant", content: null, tool_calls: calls });
});
