// The published examples of images against a running server, whose answers are abcdef...: `node check_images.mjs URL IMAGE`.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { InferenceClient } from "@huggingface/inference";

const [server, image] = process.argv.slice(2);
const content = [
  { type: "text", text: "Whats in this image?" },
  { type: "image_url", image_url: { url: image } },
];
const messages = [{ role: "user", content }];

async function checkOpenAI() {
  const client = new OpenAI({ baseURL: `${server}/v1`, apiKey: "-", maxRetries: 0 });
  const whole = await client.chat.completions.create({ model: "tgi", messages, max_tokens: 5, stream: false });
  assert.equal(whole.choices[0].message.content, "abcde");
  assert.equal(whole.usage.prompt_tokens_details.image_tokens, 16);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model: "tgi", messages, max_tokens: 5, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(text, "abcde");
}

async function checkHuggingFace() {
  const client = new InferenceClient("-").endpoint(server);
  const inputs = `![](${image})What is this a picture of?\n\n`;
  let text = "";
  // The client asks /v1/completions.
  for await (const chunk of client.textGenerationStream({ inputs, parameters: { max_new_tokens: 16, seed: 42 } })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, "abcdefghijklmnop");
  const whole = await client.chatCompletion({ messages, max_tokens: 5 });
  assert.equal(whole.choices[0].message.content, "abcde");
  text = "";
  for await (const chunk of client.chatCompletionStream({ messages, max_tokens: 5 })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(text, "abcde");
}

await checkOpenAI();
await checkHuggingFace();
