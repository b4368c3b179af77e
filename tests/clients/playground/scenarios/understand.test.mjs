// Understand: tokens with probabilities, prompt log-probabilities, tool calls, reasoning, timings, stop and continue.
import assert from "node:assert/strict";
import test from "node:test";
import { addServer, ask, chooseServer, chunk, END, metrics, SERVERS, setParameter, settled, withPage, withServer } from "./lib.mjs";

const PAGE = `${SERVERS.demo}/playground`;
const post = async (path, body) =>
  (await fetch(SERVERS.demo + path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();
const QUESTION = [{ role: "user", content: "What is the capital of France?" }];

async function prepared(page, limit = "10") {
  await setParameter(page, "temperature", "0");
  await setParameter(page, "max_tokens", limit);
}

test("each token of an answer has its probability and its alternatives", () =>
  withPage(PAGE, {}, async (page) => {
    await prepared(page);
    await page.getByLabel("Tokens", { exact: true }).check();
    await ask(page, QUESTION[0].content);
    const wanted = await post("/v1/chat/completions", { messages: QUESTION, temperature: 0, max_tokens: 10, logprobs: true, top_logprobs: 5 });
    const entries = wanted.choices[0].logprobs.content;
    const tokens = page.getByRole("group", { name: "Tokens of the answer" }).getByRole("button");
    assert.deepEqual(await tokens.allInnerTexts(), entries.map(({ token }) => token));
    const shades = await tokens.evaluateAll((buttons) => buttons.map((button) => button.className));
    assert.deepEqual(shades, entries.map(({ logprob }) => `token p${Math.min(9, Math.floor(10 * Math.exp(logprob)))}`));

    const panel = page.locator(".alternatives");
    const rows = async () => (await panel.locator("tr td:first-child").allInnerTexts()).map((text) => JSON.parse(text.replace(" (taken)", "")));
    const best = (entry) => entry.top_logprobs.map(({ token }) => token);
    await tokens.nth(2).hover();
    assert.deepEqual((await rows()).slice(0, 5), best(entries[2]));
    await tokens.first().focus();
    await page.keyboard.press("ArrowRight");
    assert.deepEqual((await rows()).slice(0, 5), best(entries[1]));
    const percent = `${(100 * Math.exp(entries[1].logprob)).toFixed(1)}`;
    assert.ok((await tokens.nth(1).getAttribute("aria-label")).includes(percent.slice(0, 3)) || percent === "100.0");
    if (process.env.SCREENSHOTS) {
      await tokens.nth(2).hover();
      await page.screenshot({ path: `${process.env.SCREENSHOTS}/tokens.png` });
    }
  }));

test("raw prompts have token views too", () =>
  withPage(PAGE, {}, async (page) => {
    await page.getByLabel("Tokens", { exact: true }).check();
    const { details } = await post("/generate", { inputs: "One two", parameters: { max_new_tokens: 4, details: true } });
    for (const [mode, limit] of [["/generate", "max_new_tokens"], ["/v1/completions", "max_tokens"]]) {
      await page.getByLabel(mode, { exact: true }).check();
      await page.getByLabel("Prompt", { exact: true }).fill("One two");
      await setParameter(page, limit, "4");
      if (limit === "max_tokens") await setParameter(page, "temperature", "0");
      await page.getByRole("button", { name: "Send" }).click();
      await settled(page);
      const tokens = page.getByRole("group", { name: "Tokens of the answer" }).getByRole("button");
      assert.deepEqual(await tokens.allInnerTexts(), details.tokens.map(({ text }) => text.replaceAll("\n", "↵\n")));
    }
  }));

test("the prompt's log-probabilities are those of the model", () =>
  withPage(PAGE, {}, async (page) => {
    await page.getByLabel("Message", { exact: true }).fill(QUESTION[0].content);
    await page.getByText("The prompt that the model reads").click();
    await page.getByRole("button", { name: "Show prompt and tokens" }).click();
    await page.getByRole("button", { name: "Show log-probabilities" }).click();
    const { templated_text } = await post("/chat_tokenize", { messages: QUESTION });
    const parameters = { decoder_input_details: true, details: true, max_new_tokens: 1 };
    const { prefill } = (await post("/generate", { inputs: templated_text, parameters })).details;
    const sum = prefill.reduce((total, { logprob }) => total + (logprob ?? 0), 0);
    const line = page.locator("#prompt-view p", { hasText: "log-probability" });
    await line.waitFor();
    const shown = /^(\d+) tokens; log-probability (-[\d.]+); perplexity/.exec(await line.innerText());
    assert.equal(Number(shown[1]), prefill.length);
    assert.ok(Math.abs(Number(shown[2]) - sum) < 0.05, `${shown[2]} ${sum}`);
  }));

test("reasoning and tool calls have blocks of their own, and the call's answer goes back", () =>
  withPage(`${SERVERS.thinking}/playground`, {}, async (page) => {
    const tool = { type: "function", function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } } };
    await setParameter(page, "tools", JSON.stringify([tool]));
    for (const streams of [true, false]) {
      await page.locator("#stream").setChecked(streams);
      await ask(page, "What is the weather in Paris?");
      const answer = page.locator(".answer").last();
      assert.match(await answer.locator(".reasoning").innerText(), /The user wants the weather\./);
      assert.equal((await answer.locator(".markdown").innerText()).trim(), "Let me look.");
      const call = answer.getByRole("region", { name: "Tool call" });
      assert.match(await call.innerText(), /Calls get_weather with\s+\{\s+"city": "Paris"\s+\}/);
      assert.equal((await metrics(answer))["finish reason"], "tool_calls");
    }
    await page.getByLabel("Add a message").selectOption("tool");
    await page.getByRole("button", { name: "Add", exact: true }).click();
    await page.getByLabel("Text of message 5, tool").fill("sunny");
    await page.getByLabel("Id of the call").fill("call-1");
    await page.getByRole("button", { name: /(Regenerate|Answer from here), message 5/ }).click();
    await settled(page);
    const { messages } = page.sent.at(-1).body;
    assert.deepEqual(messages.at(-1), { role: "tool", content: "sunny", tool_call_id: "call-1" });
    assert.equal(messages.at(-2).tool_calls[0].function.name, "get_weather");
  }));

test("an answer that was cut by its limit goes on", () =>
  withPage(PAGE, {}, async (page) => {
    const whole = await post("/v1/chat/completions", { messages: QUESTION, temperature: 0, max_tokens: 40 });
    await prepared(page, "3");
    await ask(page, QUESTION[0].content);
    const first = await page.locator(".answer-body").innerText();
    await setParameter(page, "max_tokens", "40");
    await page.getByRole("button", { name: "Continue" }).click();
    await settled(page);
    const { messages, continue_final_message } = page.sent.at(-1).body;
    assert.deepEqual([messages.at(-1).role, continue_final_message], ["assistant", true]);
    assert.ok(first.length > 0 && messages.at(-1).content.trim() === first.trim());
    const text = await page.locator(".answer .markdown").textContent();
    assert.equal(text.trim(), whole.choices[0].message.content.trim());
    assert.equal(await page.getByRole("button", { name: "Continue" }).count(), 0);
  }));

test("Stop ends the call at the server, and the answer can go on", async () => {
  let closed;
  const isClosed = new Promise((resolve) => (closed = resolve));
  const script = async (body, response) => {
    if (body.continue_final_message) {
      response.end(chunk(" and more") + END);
      return;
    }
    response.write(chunk("The start"));
    response.once("close", closed);
  };
  await withServer({ script }, ({ root, calls }) =>
    withPage(PAGE, { hosts: [root] }, async (page) => {
      await addServer(page, { root, name: "Slow" });
      await chooseServer(page, "Slow");
      await page.getByLabel("Message", { exact: true }).fill("hi");
      await page.keyboard.press("Control+Enter");
      await page.locator(".markdown", { hasText: "The start" }).waitFor();
      await page.keyboard.press("Escape");
      await settled(page);
      await isClosed;
      await page.getByText("You stopped the answer.").waitFor();
      await page.getByRole("button", { name: "Continue" }).click();
      await settled(page);
      assert.equal(await page.locator(".markdown").innerText(), "The start and more");
      assert.equal(calls[1].body.messages.at(-1).content, "The start");
    }),
  );
});

test("the server's timings are shown, whole and streamed, on each route", () =>
  withPage(PAGE, {}, async (page) => {
    await prepared(page, "4");
    for (const [mode, field] of [["Chat", "Message"], ["/v1/completions", "Prompt"], ["/generate", "Prompt"]]) {
      await page.getByLabel(mode, { exact: true }).check();
      await setParameter(page, mode === "/generate" ? "max_new_tokens" : "max_tokens", "4");
      for (const streams of [true, false]) {
        await page.locator("#stream").setChecked(streams);
        await page.getByLabel(field, { exact: true }).fill("One, two, three");
        await page.getByRole("button", { name: "Send" }).click();
        await settled(page);
        const block = page.locator("details", { hasText: "Timings of the server" }).last();
        await block.locator("summary").click();
        const shown = await metrics(block);
        assert.deepEqual(Object.keys(shown), ["queue", "prefill", "decode", "cached tokens", "preemptions", "steps"]);
        assert.match(shown.prefill, /^[\d.]+ (ms|s)$/);
        assert.equal((await metrics(page.locator(".answer").last()))["cached tokens"], shown["cached tokens"]);
      }
    }
  }));
