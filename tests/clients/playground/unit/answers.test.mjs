import assert from "node:assert/strict";
import test from "node:test";
import { addEvent, addWhole, newAnswer, ServerError } from "../../../../router/textmill_router/api/playground/page/answers.js";

function streamed(mode, ...events) {
  const answer = newAnswer();
  for (const event of events) addEvent(answer, mode, typeof event === "string" ? event : JSON.stringify(event));
  return answer;
}
const chunk = (delta, more = {}) => ({ choices: [{ index: 0, delta, finish_reason: null, ...more }] });

test("a chat grows: reasoning, text, tool calls, probabilities, counts", () => {
  const logprobs = { content: [{ token: "H", logprob: -0.5, top_logprobs: [{ token: "H", logprob: -0.5 }, { token: "J", logprob: -1 }] }] };
  const answer = streamed(
    "chat",
    chunk({ role: "assistant", content: "" }),
    chunk({ reasoning_content: "Let me" }),
    chunk({ reasoning: " see" }),
    chunk({ content: "H" }, { logprobs }),
    chunk({ content: "i" }),
    chunk({ tool_calls: [{ index: 0, id: "1", function: { name: "f", arguments: "{" } }] }),
    chunk({ tool_calls: [{ index: 0, function: { arguments: "}" } }] }),
    chunk({}, { finish_reason: "tool_calls" }),
    { choices: [], usage: { prompt_tokens: 3, completion_tokens: 2, prompt_tokens_details: { cached_tokens: 1 } }, timings: { queue_s: 1 } },
  );
  assert.equal(answer.isComplete, false);
  addEvent(answer, "chat", "[DONE]");
  const [choice] = answer.choices;
  assert.deepEqual([choice.text, choice.reasoning, choice.finish], ["Hi", "Let me see", "tool_calls"]);
  assert.deepEqual(choice.toolCalls, [{ id: "1", type: "function", function: { name: "f", arguments: "{}" } }]);
  assert.deepEqual(choice.tokens[0].alternatives, [{ text: "H", logprob: -0.5 }, { text: "J", logprob: -1 }]);
  assert.deepEqual([answer.usage, answer.timings, answer.isComplete], [{ input: 3, output: 2, cached: 1 }, { queue_s: 1 }, true]);
});

test("choices of one stream are told apart", () => {
  const part = (index, content) => ({ choices: [{ index, delta: { content } }] });
  assert.deepEqual(streamed("chat", part(1, "b"), part(0, "a"), part(1, "c")).choices.map((choice) => choice.text), ["a", "bc"]);
});

test("a completion grows with its parallel lists", () => {
  const logprobs = { tokens: ["a", "b"], token_logprobs: [null, -2], top_logprobs: [null, { b: -2, c: -3 }], text_offset: [0, 1] };
  const answer = streamed("completions", { choices: [{ index: 0, text: "ab", logprobs, finish_reason: "length" }] }, "[DONE]");
  assert.deepEqual(answer.choices[0].tokens, [
    { text: "a", logprob: null, alternatives: [] },
    { text: "b", logprob: -2, alternatives: [{ text: "b", logprob: -2 }, { text: "c", logprob: -3 }] },
  ]);
  assert.deepEqual([answer.choices[0].text, answer.choices[0].finish], ["ab", "length"]);
});

test("a native stream grows, and its last event has the whole text", () => {
  const token = (text, special = false) => ({ id: 1, text, logprob: -1, special });
  const details = { finish_reason: "eos_token", generated_tokens: 3, input_length: 4, seed: null };
  const answer = streamed(
    "generate",
    { index: 1, token: token("a"), top_tokens: [token("a"), token("z")], generated_text: null, details: null },
    { index: 2, token: token("b"), generated_text: null, details: null },
  );
  assert.deepEqual([answer.choices[0].text, answer.isComplete], ["ab", false]);
  addEvent(answer, "generate", JSON.stringify({ index: 3, token: token("</s>", true), generated_text: "ab", details }));
  assert.deepEqual([answer.choices[0].text, answer.choices[0].finish, answer.isComplete], ["ab", "eos_token", true]);
  assert.deepEqual([answer.usage, answer.choices[0].tokens.length], [{ input: 4, output: 3, cached: null }, 3]);
  assert.deepEqual(answer.choices[0].tokens[0].alternatives.map((one) => one.text), ["a", "z"]);
});

test("whole answers of the three routes", () => {
  const answer = newAnswer();
  const message = { content: "Hi", reasoning_content: "R", tool_calls: [{ id: "1" }] };
  addWhole(answer, "chat", { choices: [{ index: 0, message, finish_reason: "stop" }], usage: { prompt_tokens: 1, completion_tokens: 2 } });
  assert.deepEqual([answer.choices[0].text, answer.choices[0].reasoning, answer.usage.cached], ["Hi", "R", null]);
  const text = newAnswer();
  addWhole(text, "completions", { choices: [{ index: 0, text: "x", finish_reason: "stop" }] });
  assert.deepEqual([text.choices[0].text, text.isComplete], ["x", true]);
  const native = newAnswer();
  const one = { finish_reason: "length", generated_tokens: 1, tokens: [{ text: "a", logprob: -1 }], top_tokens: [[{ text: "b", logprob: -2 }]] };
  addWhole(native, "generate", { generated_text: "a", details: { ...one, best_of_sequences: [{ ...one, generated_text: "c" }] } });
  assert.deepEqual(native.choices.map((choice) => choice.text), ["a", "c"]);
  assert.deepEqual(native.choices[0].tokens, [{ text: "a", logprob: -1, alternatives: [{ text: "b", logprob: -2 }] }]);
});

test("errors in a stream are thrown with their words, in both dialects", () => {
  for (const error of ["queue full", { message: "queue full", type: "x" }]) {
    assert.throws(() => streamed("chat", { error }), (thrown) => thrown instanceof ServerError && thrown.message === "queue full");
  }
});
