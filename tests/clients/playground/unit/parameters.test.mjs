import assert from "node:assert/strict";
import test from "node:test";
import { checkResponseFormat, checkTools } from "../../../../router/textmill_router/api/playground/page/json_checks.js";
import { readParameters, takesTimings } from "../../../../router/textmill_router/api/playground/page/openapi.js";
import { formatParameter, parseParameter, rangeText } from "../../../../router/textmill_router/api/playground/page/parameters.js";

const nullable = (schema, more = {}) => ({ anyOf: [schema, { type: "null" }], default: null, ...more });
const PROPERTIES = {
  messages: { type: "array" },
  model: nullable({ type: "string" }),
  stream: nullable({ type: "boolean" }),
  temperature: nullable({ type: "number", minimum: 0 }, { default: 1, description: "How evenly." }),
  top_p: nullable({ type: "number", exclusiveMinimum: 0, maximum: 1 }),
  top_k: nullable({ type: "integer", minimum: -1, maximum: 2147483647 }),
  ignore_eos: nullable({ type: "boolean" }),
  tool_prompt: nullable({ type: "string" }),
  stop: { anyOf: [{ type: "string" }, { type: "array", items: { type: "string" } }, { type: "null" }] },
  size: nullable({ enum: ["small", "large"] }),
  tools: nullable({ type: "array" }),
  response_format: nullable({ type: "object" }),
  tool_choice: { default: null },
  bad_words: { default: null, description: "Not supported: refused." },
};
const DOCUMENT = { components: { schemas: { ChatRequest: { properties: PROPERTIES } } } };
const CHAT = Object.fromEntries(readParameters(DOCUMENT).chat.map((parameter) => [parameter.name, parameter]));
const parse = (name, text) => parseParameter(CHAT[name], text);

test("the document gives kind, range, default and description", () => {
  assert.deepEqual(Object.keys(CHAT), Object.keys(PROPERTIES).filter((name) => !["messages", "model", "stream"].includes(name)));
  const kinds = Object.fromEntries(Object.values(CHAT).map(({ name, kind }) => [name, kind]));
  assert.deepEqual(kinds, {
    temperature: "number", top_p: "number", top_k: "integer", ignore_eos: "boolean", tool_prompt: "string", stop: "texts",
    size: "choice", tools: "json", response_format: "json", tool_choice: "json", bad_words: "json",
  });
  assert.deepEqual([CHAT.temperature.default, CHAT.temperature.description, CHAT.bad_words.isRefused], [1, "How evenly.", true]);
  assert.deepEqual(["temperature", "top_p", "top_k", "ignore_eos"].map((name) => rangeText(CHAT[name])), [
    "at least 0", "more than 0 and at most 1", "at least -1", "",
  ]);
  assert.deepEqual([takesTimings(DOCUMENT), readParameters(DOCUMENT).generate], [false, []]);
});

test("a text becomes the value of its kind", () => {
  for (const [name, text, value] of [
    ["temperature", " 0.5 ", 0.5], ["top_k", "3", 3], ["ignore_eos", "false", false], ["tool_prompt", "Use it.", "Use it."],
    ["stop", "END", "END"], ["stop", '["a", "b"]', ["a", "b"]], ["stop", '"["', "["], ["stop", "[x", "[x"], ["tool_choice", "auto", "auto"],
    ["tool_choice", '{"a": 1}', { a: 1 }], ["temperature", "  ", undefined],
  ]) {
    assert.deepEqual(parse(name, text), { value }, `${name} ${text}`);
  }
});

test("a value is written so that it is read again", () => {
  for (const [name, value] of [
    ["temperature", 0], ["stop", "END"], ["stop", ["a"]], ["stop", '["a"]'], ["ignore_eos", false], ["tools", []], ["tool_choice", { a: [1] }],
  ]) {
    assert.deepEqual(parse(name, formatParameter(CHAT[name], value)), { value }, name);
  }
});

test("a bad text is refused with what was wanted and found", () => {
  for (const [name, text, words] of [
    ["temperature", "hot", /wanted a number, found "hot"/], ["temperature", "-1", /at least 0, found -1/], ["top_k", "1.5", /whole number/],
    ["top_p", "0", /more than 0/], ["top_p", "1.01", /at most 1/], ["stop", "[1]", /list of texts/], ["tools", "{", /not JSON/],
    ["tools", "{}", /list of tools/], ["response_format", '{"type": "json_schema"}', /json_schema.schema/],
  ]) {
    assert.match(parse(name, text).error, words, `${name} ${text}`);
  }
});

test("tools and response formats are checked part by part", () => {
  const tool = (more) => [{ type: "function", function: { name: "f", ...more } }];
  assert.equal(checkTools(tool({ parameters: { type: "object" } })), null);
  assert.match(checkTools([{ function: {} }]), /tools\[0\].function.name/);
  assert.match(checkTools([{ type: "x", function: { name: "f" } }]), /type must be "function"/);
  assert.match(checkTools(tool({ parameters: [] })), /JSON schema/);
  for (const format of [{ type: "json_object" }, { type: "json_schema", json_schema: { schema: {} } }, { type: "json", value: {} }, { type: "regex", value: "a+" }]) {
    assert.equal(checkResponseFormat(format), null);
  }
  assert.match(checkResponseFormat({ type: "regex" }), /regular expression/);
  assert.match(checkResponseFormat({}), /type is missing/);
});
