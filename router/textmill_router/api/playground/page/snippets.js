// The request as a program: for a shell, for Python and for JavaScript, with the clients that people use.
import { javascript, javascriptName, python, shellText } from "./literals.js";

/** The kinds of snippets, in the order in which the page shows them. */
export const KINDS = [
  { id: "curl", label: "curl", language: "sh" },
  { id: "huggingface_hub", label: "Python: huggingface_hub", language: "python" },
  { id: "openai-python", label: "Python: openai", language: "python" },
  { id: "huggingface-js", label: "JavaScript: @huggingface/inference", language: "javascript" },
  { id: "openai-js", label: "JavaScript: openai", language: "javascript" },
];

// The fields that the clients take by name; any other field goes into `extra_body`.
const HUB_CHAT = new Set([
  "messages", "model", "stream", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
  "response_format", "seed", "stop", "stream_options", "temperature", "tool_choice", "tool_prompt", "tools", "top_logprobs",
  "top_p",
]);
const HUB_GENERATE = new Set([
  "details", "stream", "adapter_id", "best_of", "decoder_input_details", "do_sample", "frequency_penalty", "grammar",
  "max_new_tokens", "repetition_penalty", "return_full_text", "seed", "stop", "temperature", "top_k", "top_n_tokens", "top_p",
  "truncate", "typical_p", "watermark",
]);
const OPENAI_CHAT = new Set([
  "messages", "model", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
  "max_tokens", "n", "parallel_tool_calls", "presence_penalty", "response_format", "seed", "stop", "stream",
  "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
]);
const OPENAI_COMPLETIONS = new Set([
  "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
  "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
]);

/**
 * Returns `{code}` of one kind of snippet, or `{reason}` where the client has no call for the request. `request` is
 * `{path, body}`, `root` is the address of the server without a slash at its end, and `hasKey` says that the server
 * asks for a key, which the snippet reads from the variable API_KEY.
 */
export function snippet(kind, { request, root, hasKey }) {
  const call = { ...request, root, hasKey, isChat: request.path === "/v1/chat/completions" };
  switch (kind) {
    case "curl":
      return { code: curl(call) };
    case "huggingface_hub":
      return isNative(call) ? hubGenerate(call) : call.isChat ? { code: hubChat(call) } : noClient("huggingface_hub");
    case "openai-python":
      return isNative(call) ? noClient("openai") : { code: openaiPython(call) };
    case "huggingface-js":
      return isNative(call) ? { code: inferenceGenerate(call) } : call.isChat ? { code: inferenceChat(call) } : noClient("@huggingface/inference");
    case "openai-js":
      return isNative(call) ? noClient("openai") : { code: openaiJavascript(call) };
    default:
      throw new Error(`no kind of snippet: ${kind}`);
  }
}

function isNative({ path }) {
  return path === "/generate" || path === "/generate_stream";
}

function noClient(name) {
  const route = name === "openai" ? "the native route /generate" : "the route /v1/completions";
  return { reason: `${name} has no call for ${route}. Choose another client or another kind of prompt.` };
}

function curl({ root, path, body, hasKey }) {
  const lines = [`curl --no-buffer --silent --show-error ${shellText(root + path)}`, "--header 'Content-Type: application/json'"];
  if (hasKey) lines.push('--header "Authorization: Bearer $API_KEY"');
  lines.push(`--data-raw ${shellText(JSON.stringify(body, null, 2))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

// Python

function pythonArguments(fields, indent) {
  return fields.map(([name, value]) => `${" ".repeat(indent)}${name}=${python(value, indent)},\n`).join("");
}

/** Splits a body into the arguments that a client takes by name, and the rest as `extra_body`. */
function namedFields(body, known) {
  const named = Object.entries(body).filter(([name]) => known.has(name));
  const extra = Object.entries(body).filter(([name]) => !known.has(name));
  return extra.length > 0 ? [...named, ["extra_body", Object.fromEntries(extra)]] : named;
}

function pythonKey(hasKey) {
  return hasKey ? 'os.environ["API_KEY"]' : '"none"';
}

function pythonHead(hasKey, line) {
  return `${hasKey ? "import os\n\n" : ""}${line}\n\n`;
}

function hubChat({ root, body, hasKey }) {
  return (
    pythonHead(hasKey, "from huggingface_hub import InferenceClient") +
    `client = InferenceClient(base_url=${python(root)}, api_key=${pythonKey(hasKey)})\n` +
    `answer = client.chat_completion(\n${pythonArguments(namedFields(body, HUB_CHAT), 4)})\n` +
    pythonPrint(body, "chat")
  );
}

function hubGenerate({ root, path, body, hasKey }) {
  const { inputs, parameters } = body;
  const unknown = Object.keys(parameters).filter((name) => !HUB_GENERATE.has(name));
  if (unknown.length > 0) {
    return { reason: `text_generation of huggingface_hub does not take ${unknown.join(", ")}. Use curl, or @huggingface/inference.` };
  }
  const streams = path === "/generate_stream";
  const fields = Object.entries(parameters);
  if (streams) fields.push(["stream", true]);
  return {
    code:
      pythonHead(hasKey, "from huggingface_hub import InferenceClient") +
      `client = InferenceClient(${python(root)}, token=${hasKey ? pythonKey(hasKey) : "False"})\n` +
      `answer = client.text_generation(\n    ${python(inputs, 4)},\n${pythonArguments(fields, 4)})\n` +
      (streams
        ? "for event in answer:\n    if not event.token.special:\n        print(event.token.text, end=\"\", flush=True)\nprint()\n"
        : "print(answer.generated_text)\n"),
  };
}

function openaiPython({ root, body, hasKey, isChat }) {
  const known = isChat ? OPENAI_CHAT : OPENAI_COMPLETIONS;
  return (
    pythonHead(hasKey, "from openai import OpenAI") +
    `client = OpenAI(base_url=${python(`${root}/v1`)}, api_key=${pythonKey(hasKey)})\n` +
    `answer = client.${isChat ? "chat.completions" : "completions"}.create(\n${pythonArguments(namedFields(body, known), 4)})\n` +
    pythonPrint(body, isChat ? "chat" : "completions")
  );
}

function pythonPrint(body, mode) {
  if (body.stream) {
    const text = mode === "chat" ? "chunk.choices[0].delta.content or \"\"" : "chunk.choices[0].text";
    return `for chunk in answer:\n    if chunk.choices:\n        print(${text}, end="", flush=True)\nprint()\n`;
  }
  if (mode === "completions") return "print(answer.choices[0].text)\n";
  return body.tools ? "print(answer.choices[0].message)\n" : "print(answer.choices[0].message.content)\n";
}

// JavaScript

function javascriptKey(hasKey) {
  return hasKey ? "process.env.API_KEY" : '"none"';
}

function inferenceClient({ root, hasKey }) {
  return (
    'import { InferenceClient } from "@huggingface/inference";\n\n' +
    `const client = new InferenceClient(${javascriptKey(hasKey)}, { endpointUrl: ${javascript(root)} });\n`
  );
}

function inferenceChat(call) {
  const { stream, ...body } = call.body;
  const given = javascriptObject(body);
  return (
    inferenceClient(call) +
    (stream
      ? `for await (const chunk of client.chatCompletionStream(${given})) {\n` +
        '  process.stdout.write(chunk.choices[0]?.delta.content ?? "");\n}\nconsole.log();\n'
      : `const answer = await client.chatCompletion(${given});\n${javascriptPrint(body, true)}`)
  );
}

function inferenceGenerate(call) {
  const given = javascriptObject(call.body);
  return (
    inferenceClient(call) +
    (call.path === "/generate_stream"
      ? `for await (const event of client.textGenerationStream(${given})) {\n` +
        "  if (!event.token.special) process.stdout.write(event.token.text);\n}\nconsole.log();\n"
      : `const answer = await client.textGeneration(${given});\nconsole.log(answer.generated_text);\n`)
  );
}

function openaiJavascript({ root, body, hasKey, isChat }) {
  return (
    'import OpenAI from "openai";\n\n' +
    `const client = new OpenAI({ baseURL: ${javascript(`${root}/v1`)}, apiKey: ${javascriptKey(hasKey)} });\n` +
    `const answer = await client.${isChat ? "chat.completions" : "completions"}.create(${javascriptObject(body)});\n` +
    (body.stream
      ? "for await (const chunk of answer) {\n" +
        `  process.stdout.write(chunk.choices[0]?.${isChat ? "delta.content" : "text"} ?? "");\n}\nconsole.log();\n`
      : javascriptPrint(body, isChat))
  );
}

function javascriptPrint(body, isChat) {
  if (!isChat) return "console.log(answer.choices[0].text);\n";
  return body.tools ? "console.log(answer.choices[0].message);\n" : "console.log(answer.choices[0].message.content);\n";
}

function javascriptObject(body) {
  const lines = Object.entries(body).map(([name, value]) => `  ${javascriptName(name)}: ${javascript(value, 2)},\n`);
  return `{\n${lines.join("")}}`;
}
