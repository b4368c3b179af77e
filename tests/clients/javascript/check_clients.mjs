// The JavaScript clients of the OpenAI dialect against a running server; each must get the model's answer.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { InferenceClient } from "@huggingface/inference";

const server = process.argv[2];
const baseURL = `${server}/v1`;
const question = "What is the capital of France?";
const messages = [{ role: "user", content: question }];
const parameters = {
  type: "object",
  properties: { name: { type: "string", enum: ["Ann", "Bob"] } },
  required: ["name"],
  additionalProperties: false,
};

async function checkOpenAI() {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const whole = await client.chat.completions.create({ model: "tgi", messages, max_tokens: 16, temperature: 0 });
  assert.match(whole.choices[0].message.content, /Paris/);
  let text = "";
  let usage = null;
  const chunks = await client.chat.completions.create({
    model: "tgi",
    messages,
    max_tokens: 16,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of chunks) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.total_tokens, whole.usage.total_tokens);
  const stream = client.chat.completions.stream({ model: "tgi", messages, max_tokens: 16, temperature: 0 });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.role, "assistant");
  const called = await client.chat.completions.create({
    model: "tgi",
    messages: [{ role: "user", content: "Save Ann." }],
    tools: [{ type: "function", function: { name: "save", parameters } }],
    tool_choice: { type: "function", function: { name: "save" } },
    max_tokens: 60,
    temperature: 0,
  });
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  assert.ok(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).name);
  await assert.rejects(
    client.chat.completions.create({ model: "tgi", messages, temperature: -1 }),
    (error) => error instanceof OpenAI.UnprocessableEntityError && error.param === "temperature",
  );
  const completion = await client.completions.create({
    model: "tgi",
    prompt: "The capital of France is",
    max_tokens: 4,
    temperature: 0,
  });
  assert.match(completion.choices[0].text, /Paris/);
}

async function checkAiSdk() {
  const provider = createOpenAICompatible({ name: "textmill", baseURL, includeUsage: true });
  const model = provider("tgi");
  const options = { model, prompt: question, maxOutputTokens: 16, temperature: 0, maxRetries: 0 };
  const whole = await generateText(options);
  assert.match(whole.text, /Paris/);
  assert.equal(whole.finishReason, "stop");
  const stream = streamText(options);
  let text = "";
  for await (const part of stream.textStream) text += part;
  assert.equal(text, whole.text);
  assert.ok((await stream.usage).totalTokens > 0);
  const called = await generateText({
    model,
    prompt: "Save Ann.",
    tools: { save: tool({ description: "Save a person.", inputSchema: jsonSchema(parameters) }) },
    toolChoice: "required",
    maxOutputTokens: 60,
    temperature: 0,
    maxRetries: 0,
  });
  assert.equal(called.toolCalls[0].toolName, "save");
  assert.ok(called.toolCalls[0].input.name);
}

async function checkHuggingFace() {
  const client = new InferenceClient("none", { endpointUrl: server });
  const whole = await client.chatCompletion({ messages, max_tokens: 16, temperature: 0 });
  assert.match(whole.choices[0].message.content, /Paris/);
  let text = "";
  for await (const chunk of client.chatCompletionStream({ messages, max_tokens: 16, temperature: 0 })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
  const inputs = "The capital of France is";
  const greedy = { max_new_tokens: 4, do_sample: false };
  const generated = await client.textGeneration({ inputs, parameters: greedy });
  assert.match(generated.generated_text, /Paris/);
  const again = await client.textGeneration({ inputs, parameters: { ...greedy, return_full_text: true } });
  assert.equal(again.generated_text, inputs + generated.generated_text);
  const grammar = { type: "regex", value: "[0-9]{3}" };
  const number = await client.textGeneration({ inputs, parameters: { ...greedy, grammar } });
  assert.match(number.generated_text, /^[0-9]{3}$/);
  text = "";
  for await (const chunk of client.textGenerationStream({ inputs, parameters: greedy })) text += chunk.choices[0].text;
  assert.equal(text, generated.generated_text);
  await assert.rejects(client.textGeneration({ inputs, parameters: { top_p: 7 } }), (error) => {
    assert.equal(error.httpResponse.status, 422);
    return error.httpResponse.body.error.param === "top_p";
  });
}

for (const check of [checkOpenAI, checkAiSdk, checkHuggingFace]) {
  await check();
  console.log(`${check.name}: ok`);
}
