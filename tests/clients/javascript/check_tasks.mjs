// Calls every task of @huggingface/inference. The argument is a JSON object of the URLs by task.
import { InferenceClient } from "@huggingface/inference";
import OpenAI, { toFile } from "openai";
const urls = JSON.parse(process.argv[2]);
const client = new InferenceClient();
const bytes = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10, 1, 2, 3]);
const picture = new Blob([bytes], { type: "image/png" });
const sound = new Blob([bytes]);
const calls = [
  ["sentence-similarity", "featureExtraction", { inputs: "the happy dog" }],
  ["sentence-similarity", "featureExtraction", { inputs: ["a dog", "a cat"], parameters: { normalize: true } }],
  ["sentence-similarity", "sentenceSimilarity", { inputs: { source_sentence: "a dog", sentences: ["a cat", "the day"] } }],
  ["text-classification", "textClassification", { inputs: "a dog" }],
  ["text-classification", "zeroShotClassification", { inputs: "a dog", parameters: { candidate_labels: ["dog", "cat"] } }],
  ["token-classification", "tokenClassification", { inputs: "my name is sarah" }],
  ["fill-mask", "fillMask", { inputs: "a [MASK] dog" }],
  ["question-answering", "questionAnswering", { inputs: { question: "my name?", context: "Sarah is in London" } }],
  ["table-question-answering", "tableQuestionAnswering", { inputs: { query: "who?", table: { Name: ["Ann", "Bob"] } } }],
  ["summarization", "summarization", { inputs: "hi", parameters: { max_length: 8 } }],
  ["translation", "translation", { inputs: "hi" }],
  ["image-classification", "imageClassification", { data: picture }],
  ["image-classification", "imageClassification", { data: picture, parameters: { top_k: 2 } }],
  ["object-detection", "objectDetection", { data: picture }],
  ["image-segmentation", "imageSegmentation", { inputs: picture }],
  ["zero-shot-image-classification", "zeroShotImageClassification", { inputs: { image: picture }, parameters: { candidate_labels: ["cat", "a dog"] } }],
  ["image-to-text", "imageToText", { data: picture }],
  ["image-to-text", "imageToText", { inputs: picture }],
  ["visual-question-answering", "visualQuestionAnswering", { inputs: { question: "What is it?", image: picture } }],
  ["document-question-answering:written", "documentQuestionAnswering", { inputs: { question: "How much?", image: picture } }],
  ["document-question-answering", "documentQuestionAnswering", { inputs: { question: "How much?", image: picture }, parameters: { word_boxes: [["Total:", [10, 20, 30, 40]], ["9", [40, 20, 50, 40]]] } }],
  ["audio-classification", "audioClassification", { data: sound }],
  ["automatic-speech-recognition", "automaticSpeechRecognition", { data: sound }],
];
let failed = 0;
for (const [kind, method, args] of calls) {
  try { console.log(method, JSON.stringify(await client[method]({ endpointUrl: urls[kind], ...args })).slice(0, 140)); }
  catch (error) { failed += 1; console.log("FAILED", method, error.message, JSON.stringify(error.httpResponse?.body ?? "")); }
}
try {
  const openai = new OpenAI({ baseURL: urls["automatic-speech-recognition"] + "/v1", apiKey: "-", maxRetries: 0 });
  const file = await toFile(bytes, "speech.wav");
  const plain = await openai.audio.transcriptions.create({ model: "any", file });
  const form = { model: "any", file, response_format: "verbose_json", timestamp_granularities: ["word"] };
  const verbose = await openai.audio.transcriptions.create(form);
  const text = await openai.audio.transcriptions.create({ model: "any", file, response_format: "text" });
  console.log("transcriptions", JSON.stringify([plain, verbose, text]));
  if (!plain.text || verbose.words[1].word !== "two" || !text.startsWith(plain.text)) failed += 1;
  const refused = openai.audio.transcriptions.create({ model: "any", file, temperature: 0.5 });
  const error = await refused.then(() => null, (found) => found);
  if (error?.status !== 422 || error.param !== "temperature") { failed += 1; console.log("FAILED", error); }
} catch (error) { failed += 1; console.log("FAILED transcriptions", error.message); }
try {
  const spoken = await client.textToSpeech({ endpointUrl: urls["text-to-audio"], inputs: "hi", parameters: { seed: 3 } });
  const text = await spoken.text();
  console.log("textToSpeech", spoken.type, text);
  if (spoken.type !== "audio/flac" || !text.startsWith("0 3 0") || !text.endsWith(" hi")) failed += 1;
  const openai = new OpenAI({ baseURL: urls["text-to-audio"] + "/v1", apiKey: "-", maxRetries: 0 });
  const speech = await openai.audio.speech.create({ model: "any", voice: "alloy", input: "hi", response_format: "wav" });
  const file = Buffer.from(await speech.arrayBuffer()).toString();
  if (!file.startsWith("1 ") || !file.endsWith(" hi")) { failed += 1; console.log("FAILED speech", file); }
} catch (error) { failed += 1; console.log("FAILED textToSpeech", error.message); }
try { await client.fillMask({ endpointUrl: urls["fill-mask"], inputs: "no mask" }); failed += 1; console.log("FAILED no error"); }
catch (error) { console.log("error", error.constructor.name, error.message.slice(0, 160)); }
process.exit(failed ? 1 : 0);
