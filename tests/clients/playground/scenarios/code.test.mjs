// Code: every kind of snippet is taken from the page, runs as it stands against the server and gives the page's text.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { ask, SERVERS, setParameter, settled, withPage } from "./lib.mjs";

const PAGE = `${SERVERS.demo}/playground`;
const JAVASCRIPT = fileURLToPath(new URL("../../javascript/", import.meta.url)); // the folder with the clients
const run = promisify(execFile);
const LIMIT_MS = 60_000;

/** Runs a snippet and returns the text that it prints. */
async function execute(kind, code, environ = {}) {
  const options = { timeout: LIMIT_MS, cwd: JAVASCRIPT, env: { ...process.env, ...environ } };
  if (kind === "curl") return textOfCurl((await run("bash", ["-c", code], options)).stdout);
  const [program, flag] = kind.includes("js") ? ["node", ["--input-type=module", "--eval"]] : [process.env.PYTHON, ["-c"]];
  const { stdout } = await run(program, [...flag, code], options);
  return stdout.replace(/\n$/, "");
}

function textOfCurl(output) {
  const textOf = (answer) => {
    const choice = answer.choices?.[0];
    return choice?.message?.content ?? choice?.delta?.content ?? choice?.text ?? answer.generated_text ?? (answer.token?.special ? "" : answer.token?.text) ?? "";
  };
  if (!output.startsWith("data:")) return textOf(JSON.parse(output));
  const events = output.split("\n\n").filter((event) => event.startsWith("data:") && !event.includes("[DONE]")).map((event) => JSON.parse(event.slice(5)));
  const last = events.findLast((event) => typeof event.generated_text === "string");
  return last?.generated_text ?? events.map(textOf).join("");
}

/** Reads each snippet that the page offers, and returns its code by its kind. */
async function snippets(page) {
  await page.getByRole("button", { name: "Code" }).click();
  const found = {};
  for (const kind of await page.locator("#code-kind option").evaluateAll((options) => options.map((option) => option.value))) {
    await page.locator("#code-kind").selectOption(kind);
    if (await page.locator("#code-text").count()) found[kind] = await page.locator("#code-text").textContent();
    else assert.match(await page.locator("#code .note").innerText(), /has no call for|does not take/);
  }
  await page.getByRole("button", { name: "Code" }).click();
  return found;
}

async function assertSameText(page, wanted, kinds, environ) {
  for (const streams of [true, false]) {
    await page.locator("#stream").setChecked(streams);
    const found = await snippets(page);
    assert.deepEqual(Object.keys(found), kinds);
    for (const [kind, code] of Object.entries(found)) {
      assert.equal(await execute(kind, code, environ), wanted, `${kind} ${streams ? "streamed" : "whole"}\n${code}`);
    }
  }
}

test("chat: all five clients give the text of the page", () =>
  withPage(PAGE, {}, async (page) => {
    await setParameter(page, "temperature", "0");
    await setParameter(page, "max_tokens", "16");
    await setParameter(page, "repetition_penalty", "1.05"); // no field of openai's
    await setParameter(page, "stop", '["\\n\\n\\n"]');
    await page.getByLabel("Add a message").selectOption("system");
    await page.getByRole("button", { name: "Add", exact: true }).click();
    await page.getByLabel("Text of message 1, system").fill("It's a \"test\" of `quotes` $HOME \\ and\nlines 猫.");
    await ask(page, "What is the capital of France?");
    const text = (await page.locator(".answer .markdown").textContent()).trim();
    assert.ok(text.length > 5);
    await assertSameText(page, text, ["curl", "huggingface_hub", "openai-python", "huggingface-js", "openai-js"]);
  }));

test("/v1/completions and /generate: each client that has the call gives the text of the page", () =>
  withPage(PAGE, {}, async (page) => {
    for (const [mode, limit, kinds] of [
      ["/v1/completions", "max_tokens", ["curl", "openai-python", "huggingface-js", "openai-js"]],
      ["/generate", "max_new_tokens", ["curl", "huggingface_hub"]],
    ]) {
      await page.getByLabel(mode, { exact: true }).check();
      await page.getByLabel("Prompt", { exact: true }).fill("The capital of France is");
      await setParameter(page, limit, "8");
      if (mode === "/v1/completions") await setParameter(page, "temperature", "0");
      await page.getByRole("button", { name: "Send" }).click();
      await settled(page);
      await assertSameText(page, await page.locator(".answer-body").textContent(), kinds);
    }
  }));

test("a key is a variable, the code is copied with one click, and each column has its own", () =>
  withPage(`${SERVERS.locked}/llm/playground`, { permissions: ["clipboard-read", "clipboard-write"] }, async (page) => {
    await page.getByRole("button", { name: "Key and servers" }).click();
    await page.getByLabel("API key of this server").fill("s3cret");
    await page.getByRole("button", { name: "Keep the key" }).click();
    await page.locator("#model-0 option", { hasText: "fake/model" }).waitFor({ state: "attached" });
    await page.getByLabel("Compare").check();
    await page.locator("#form-columns").getByLabel("B", { exact: true }).check();
    await setParameter(page, "max_tokens", "4");
    await page.getByLabel("Message", { exact: true }).fill("hi");
    await page.locator("#stream").setChecked(false);
    await page.getByRole("button", { name: "Code" }).click();
    await page.locator("#code-column").selectOption("1");
    for (const kind of ["curl", "openai-js", "openai-python"]) {
      await page.locator("#code-kind").selectOption(kind);
      await page.locator("#code-copy").click();
      const code = await page.evaluate(() => navigator.clipboard.readText());
      assert.match(code, /API_KEY/);
      assert.doesNotMatch(code, /s3cret/);
      assert.equal(await execute(kind, code, { API_KEY: "s3cret" }), "abcd", code);
    }
  }));
