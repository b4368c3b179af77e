// The request as a program, for the clients that people use.
import { javascript, javascriptName, python, shellText } from "./literals.js";
import { MODE_OF_PATH } from "./requests.js";

/** The kinds of snippets in the order of the page. Each has a writer for each route for which the client has a call. */
export const KINDS = [
  { id: "curl", label: "curl", chat: curl, completions: curl, generate: curl },
  { id: "huggingface_hub", label: "Python: huggingface_hub", chat: hubChat, generate: hubGenerate },
  { id: "openai-python", label: "Python: openai", chat: openaiPython, completions: openaiPython },
  { id: "huggingface-js", label: "JavaScript: @huggingface/inference", chat: inferenceChat, completions: inferenceText },
  { id: "openai-js", label: "JavaScript: openai", chat: openaiJavascript, completions: openaiJavascript },
];
const names = (text) => new Set(text.trim().split(/\s+/));

// The fields that the clients take by name; any other field goes into `extra_body`.
const COMMON = "model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options temperature top_p ";
const CHAT = `${COMMON} messages response_format tool_choice tools top_logprobs `;
const HUB_CHAT = names(`${CHAT} tool_prompt`);
const HUB_GENERATE = names(`
  details stream adapter_id best_of decoder_input_details do_sample frequency_penalty grammar max_new_tokens
  repetition_penalty return_full_text seed stop temperature top_k top_n_tokens top_p truncate typical_p watermark`);
const OPENAI_CHAT = names(`${CHAT} function_call functions max_completion_tokens parallel_tool_calls user`);
const OPENAI_COMPLETIONS = names(`${COMMON} prompt best_of echo suffix user`);

/** Returns `{code}`, or `{reason}` where the client has no call for the request. With `hasKey` the code reads API_KEY. */
export function snippet(id, { request, root, hasKey }) {
  const kind = KINDS.find((one) => one.id === id);
  const route = MODE_OF_PATH[request.path];
  if (!kind[route]) return { reason: `${kind.label} has no call for ${request.path}. Choose another client or another kind of prompt.` };
  const unknown = id === "huggingface_hub" && route === "generate" ? Object.keys(request.body.parameters).filter((name) => !HUB_GENERATE.has(name)) : [];
  if (unknown.length > 0) {
    return { reason: `text_generation of huggingface_hub does not take ${unknown.join(", ")}. Use curl.` };
  }
  return { code: kind[route]({ ...request, root, hasKey, isChat: route === "chat" }) };
}

function curl({ root, path, body, hasKey }) {
  const lines = [`curl --no-buffer --silent --show-error ${shellText(root + path)}`, "--header 'Content-Type: application/json'"];
  if (hasKey) lines.push('--header "Authorization: Bearer $API_KEY"');
  lines.push(`--data-raw ${shellText(JSON.stringify(body, null, 2))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

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

function hubHead(address, hasKey) {
  const client = `client = InferenceClient(base_url=${python(address)}, api_key=${pythonKey(hasKey)})\n`;
  return pythonHead(hasKey, "from huggingface_hub import InferenceClient") + client;
}

function hubChat({ root, body, hasKey }) {
  return (
    hubHead(root, hasKey) +
    `answer = client.chat_completion(\n${pythonArguments(namedFields(body, HUB_CHAT), 4)})\n` +
    pythonPrint(body, "chat")
  );
}

function hubGenerate({ root, path, body, hasKey }) {
  const streams = path === "/generate_stream";
  const fields = Object.entries(streams ? { ...body.parameters, stream: true } : body.parameters);
  return (
    hubHead(root + path, hasKey) +
    `answer = client.text_generation(\n    ${python(body.inputs, 4)},\n${pythonArguments(fields, 4)})\n` +
    (streams
      ? 'for event in answer:\n    if not event.token.special:\n        print(event.token.text, end="", flush=True)\nprint()\n'
      : "print(answer.generated_text)\n")
  );
}

function openaiPython({ root, body, hasKey, isChat }) {
  const known = isChat ? OPENAI_CHAT : OPENAI_COMPLETIONS;
  return (
    pythonHead(hasKey, "from openai import OpenAI") +
    `client = OpenAI(base_url=${python(`${root}/v1`)}, api_key=${pythonKey(hasKey)})\n` +
    `answer = client.${isChat ? "chat." : ""}completions.create(\n${pythonArguments(namedFields(body, known), 4)})\n` +
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
  return inference(call, "chatCompletion", body, javascriptPrint(body, true));
}

/** textGeneration sends to /v1/completions, and writes `max_new_tokens` as `max_tokens`. */
function inferenceText(call) {
  const { model, prompt, stream, max_tokens, ...rest } = call.body;
  const parameters = max_tokens === undefined ? rest : { max_new_tokens: max_tokens, ...rest };
  return inference(call, "textGeneration", { model, inputs: prompt, parameters }, "console.log(answer.generated_text);\n");
}

function inference(call, method, given, print) {
  const { stream } = call.body;
  const asked = `client.${method}${stream ? "Stream" : ""}(${javascriptObject(given)})`;
  return inferenceClient(call) + (stream ? javascriptLoop(asked, call.isChat) : `const answer = await ${asked};\n${print}`);
}

function javascriptLoop(source, isChat) {
  const text = isChat ? "delta.content" : "text";
  return `for await (const chunk of ${source}) {\n  process.stdout.write(chunk.choices[0]?.${text} ?? "");\n}\nconsole.log();\n`;
}

function openaiJavascript({ root, body, hasKey, isChat }) {
  return (
    'import OpenAI from "openai";\n\n' +
    `const client = new OpenAI({ baseURL: ${javascript(`${root}/v1`)}, apiKey: ${javascriptKey(hasKey)} });\n` +
    `const answer = await client.${isChat ? "chat." : ""}completions.create(${javascriptObject(body)});\n` +
    (body.stream ? javascriptLoop("answer", isChat) : javascriptPrint(body, isChat))
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
