// Tool loops of the JavaScript clients: `check_agents.mjs URL GIVEN FINAL`, where GIVEN is what each tool answers, as JSON.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [server, givenText, final] = process.argv.slice(2);
const given = JSON.parse(givenText);
const baseURL = `${server}/v1`;
const question = "What is the weather in Tokyo, and what time is it?";
const schemas = {
  get_weather: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  get_time: { type: "object", properties: {} },
};

async function checkOpenAI(streams) {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const asked = [];
  const tools = Object.entries(schemas).map(([name, parameters]) => ({
    type: "function",
    function: {
      name,
      parameters,
      parse: JSON.parse,
      function: (args) => {
        asked.push([name, args]);
        return given[name];
      },
    },
  }));
  const runner = client.chat.completions.runTools({
    model: "tgi",
    messages: [{ role: "user", content: question }],
    tools,
    stream: streams,
  });
  assert.equal(await runner.finalContent(), final);
  assert.deepEqual(asked, [["get_weather", { city: "東京" }], ["get_time", {}]]);
}

async function checkAiSdk(streams) {
  const provider = createOpenAICompatible({ name: "textmill", baseURL });
  const asked = [];
  const tools = Object.fromEntries(
    Object.entries(schemas).map(([name, parameters]) => [
      name,
      tool({
        inputSchema: jsonSchema(parameters),
        execute: (args) => {
          asked.push([name, args]);
          return given[name];
        },
      }),
    ]),
  );
  const options = { model: provider("tgi"), prompt: question, tools, stopWhen: stepCountIs(3), maxRetries: 0 };
  const text = streams ? await streamText(options).text : (await generateText(options)).text;
  assert.equal(text, final);
  assert.deepEqual(asked, [["get_weather", { city: "東京" }], ["get_time", {}]]);
}

for (const check of [checkOpenAI, checkAiSdk]) {
  for (const streams of [false, true]) await check(streams);
  console.log(`${check.name}: ok`);
}
