// The published examples of images: `node ask_images.mjs URL IMAGE WORDS TOKENS` prints log-probabilities as JSON, by client.
import OpenAI from "openai";
import { InferenceClient } from "@huggingface/inference";

const [server, image, words, tokens] = process.argv.slice(2);
const content = [
  { type: "text", text: words },
  { type: "image_url", image_url: { url: image } },
];
const asked = { model: "tgi", messages: [{ role: "user", content }], max_tokens: Number(tokens), temperature: 0, logprobs: true };
const logprobs = (choice) => (choice?.logprobs?.content ?? []).map((token) => token.logprob);

async function streamed(chunks) {
  const found = [];
  for await (const chunk of chunks) found.push(...logprobs(chunk.choices[0]));
  return found;
}

// The client asks /v1/completions, in whose chunks the log-probabilities of tokens are a list of numbers.
async function completed(inputs) {
  const found = [];
  const parameters = { max_new_tokens: Number(tokens), temperature: 0, logprobs: 1 };
  for await (const chunk of huggingface.textGenerationStream({ inputs, parameters })) {
    found.push(...(chunk.choices[0]?.logprobs?.token_logprobs ?? []));
  }
  return found;
}

const openai = new OpenAI({ baseURL: `${server}/v1`, apiKey: "-", maxRetries: 0 });
const huggingface = new InferenceClient("-").endpoint(server);
const found = {
  openai: logprobs((await openai.chat.completions.create({ ...asked, stream: false })).choices[0]),
  "openai, stream": await streamed(await openai.chat.completions.create({ ...asked, stream: true })),
  huggingface: logprobs((await huggingface.chatCompletion(asked)).choices[0]),
  "huggingface, stream": await streamed(huggingface.chatCompletionStream(asked)),
  "huggingface, markdown": await completed(`![](${image})${words}`),
};
console.log(JSON.stringify(found));
