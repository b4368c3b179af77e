// Prompts: the conversation editor, raw prompts, the rendered prompt and its tokens.
import assert from "node:assert/strict";
import test from "node:test";
import { ask, SERVERS, setParameter, settled, withPage } from "./lib.mjs";

const PAGE = `${SERVERS.demo}/playground`;
const post = async (path, body) =>
  (await fetch(SERVERS.demo + path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

async function prepared(page) {
  await setParameter(page, "temperature", "0");
  await setParameter(page, "max_tokens", "12");
}

test("a conversation is held, edited, moved, cut and answered anew", () =>
  withPage(PAGE, {}, async (page) => {
    await prepared(page);
    await ask(page, "What is the capital of France?");
    const turns = page.locator("#turns > li");
    assert.match(await turns.nth(1).innerText(), /Paris/);
    await ask(page, "And of Italy?");
    assert.equal(await turns.count(), 4);
    assert.match(await turns.nth(3).innerText(), /Rome/);
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/chat.png` });

    // A system message is added at the end and moved to the top by keys alone.
    await page.getByLabel("Add a message").selectOption("system");
    await page.getByRole("button", { name: "Add", exact: true }).click();
    for (let place = 5; place > 1; place -= 1) {
      const up = page.getByRole("button", { name: `Move up message ${place}` });
      await up.focus();
      await page.keyboard.press("Enter");
    }
    await page.getByLabel("Text of message 1, system").fill("Answer in French.");
    await page.getByLabel("Text of message 2, user").fill("What is the capital of Spain?");

    // The answer of the assistant is overridden.
    await turns.nth(2).getByRole("button", { name: "Edit" }).click();
    await page.getByLabel("Text of the answer").fill("Madrid.");
    await turns.nth(2).getByRole("button", { name: "Done" }).click();

    await page.getByRole("button", { name: /(Regenerate|Answer from here), message 5/ }).click();
    await settled(page);
    const expected = [
      { role: "system", content: "Answer in French." },
      { role: "user", content: "What is the capital of Spain?" },
      { role: "assistant", content: "Madrid." },
      { role: "user", content: "And of Italy?" },
    ];
    assert.deepEqual(page.sent.at(-1).body.messages, expected);

    // From an earlier turn: what follows is dropped, and comes back by Undo.
    await page.getByRole("button", { name: "Answer from here, message 2" }).click();
    await settled(page);
    assert.deepEqual(page.sent.at(-1).body.messages, expected.slice(0, 2));
    assert.equal(await turns.count(), 3);
    await page.getByRole("button", { name: "Undo" }).click();
    assert.equal(await turns.count(), 5);

    await page.getByRole("button", { name: "Delete message 1" }).click();
    await page.getByLabel("Role of message 1").selectOption("system");
    assert.equal(await page.getByLabel("Text of message 1, system").inputValue(), "What is the capital of Spain?");
    assert.equal(await turns.count(), 4);

    // The tab keeps the conversation over a reload.
    await page.waitForTimeout(400);
    await page.reload();
    await page.waitForSelector("html[data-ready]");
    assert.equal(await turns.count(), 4);
  }));

test("raw prompts of /v1/completions and /generate give the model's text", () =>
  withPage(PAGE, {}, async (page) => {
    const prompt = "The capital of France is";
    const [{ generated_text }, completion] = await Promise.all([
      post("/generate", { inputs: prompt, parameters: { max_new_tokens: 8 } }),
      post("/v1/completions", { prompt, max_tokens: 8, temperature: 0 }),
    ]);
    assert.equal(completion.choices[0].text, generated_text);
    for (const [mode, limit] of [["/v1/completions", "max_tokens"], ["/generate", "max_new_tokens"]]) {
      for (const streams of [true, false]) {
        await page.getByLabel(mode, { exact: true }).check();
        await page.getByLabel("Prompt", { exact: true }).fill(prompt);
        await setParameter(page, limit, "8");
        if (limit === "max_tokens") await setParameter(page, "temperature", "0");
        await page.locator("#stream").setChecked(streams);
        await page.getByRole("button", { name: "Send" }).click();
        await settled(page);
        assert.equal(await page.locator(".answer-body").textContent(), generated_text, `${mode} ${streams}`);
      }
    }
    assert.deepEqual(page.sent.map(({ path }) => path), ["/v1/completions", "/v1/completions", "/generate_stream", "/generate"]);
  }));

test("the rendered prompt and its tokens are those of /chat_tokenize", () =>
  withPage(PAGE, {}, async (page) => {
    await page.getByLabel("Message", { exact: true }).fill("Hello there");
    const wanted = await post("/chat_tokenize", { messages: [{ role: "user", content: "Hello there" }] });
    await page.getByText("The prompt that the model reads").click();
    await page.getByRole("button", { name: "Show prompt and tokens" }).click();
    await page.getByText(`${wanted.tokenize_response.length} tokens`).waitFor();
    assert.equal(await page.locator(".prompt-text").textContent(), wanted.templated_text);
    const tokens = page.getByRole("group", { name: "Tokens of the prompt" }).getByRole("button");
    assert.equal(await tokens.count(), wanted.tokenize_response.length);
    await tokens.first().focus();
    await page.keyboard.press("ArrowRight");
    await page.locator(".alternatives").getByText(`id ${wanted.tokenize_response[1].id}`).waitFor();
  }));
