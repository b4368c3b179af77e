// Compare: one conversation, two columns with their own servers, models and parameters, streamed at the same time.
import assert from "node:assert/strict";
import test from "node:test";
import { addServer, ask, chunk, END, metrics, SERVERS, setParameter, settled, withPage, withServer } from "./lib.mjs";

const PAGE = `${SERVERS.demo}/playground`;

test("two columns differ in parameters, show their numbers and their difference", () =>
  withPage(PAGE, {}, async (page) => {
    await page.getByLabel("Compare").check();
    for (const [column, limit] of [["A", "8"], ["B", "3"]]) {
      await page.locator("#form-columns").getByLabel(column, { exact: true }).check();
      await setParameter(page, "temperature", "0");
      await setParameter(page, "max_tokens", limit);
    }
    await ask(page, "What is the capital of France?");
    const answers = page.locator(".answer");
    assert.equal(await answers.count(), 2);
    assert.deepEqual(page.sent.map(({ body }) => body.max_tokens).sort(), [3, 8]);
    assert.deepEqual(page.sent[0].body.messages, page.sent[1].body.messages);
    const [left, right] = [await metrics(answers.nth(0)), await metrics(answers.nth(1))];
    assert.deepEqual([right["tokens out"], right["finish reason"]], ["3", "length"]);
    for (const numbers of [left, right]) {
      for (const name of ["time to first token", "total time", "tokens/s", "tokens in", "tokens out", "cached tokens", "finish reason"]) {
        assert.ok(numbers[name], name);
      }
    }
    assert.equal(left["tokens in"], right["tokens in"]);
    // The second turn goes on with the answers that each column gave.
    const texts = [await answers.nth(0).locator(".markdown").innerText(), await answers.nth(1).locator(".markdown").innerText()];
    assert.ok(texts[0].startsWith(texts[1].trim()) && texts[0] !== texts[1], texts.join("|"));
    await page.getByRole("button", { name: "Show difference" }).click();
    const difference = page.locator(".difference .plain");
    assert.equal(await difference.innerText(), texts[0]);
    assert.notEqual(await difference.locator("del").count(), 0);
    assert.equal(await difference.locator("ins").count(), 0);
    await page.getByRole("button", { name: "Side by side" }).click();
    await ask(page, "And of Italy?");
    const second = page.sent.slice(2).sort((one, other) => other.body.max_tokens - one.body.max_tokens);
    assert.deepEqual(second.map(({ body }) => body.messages[1].content.trim()), texts.map((text) => text.trim()));
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/compare.png` });
  }));

test("both columns stream at the same time, each from its own server and model", async () => {
  // Each server holds its second half until the other has sent its first, so columns one after the other would hang.
  let begun = 0;
  const both = Promise.withResolvers?.() ?? deferred();
  const halves = (name) => async (_, response) => {
    response.write(chunk(`${name} first `));
    begun += 1;
    if (begun === 2) both.resolve();
    await both.promise;
    response.end(chunk(`${name} second`) + END);
  };
  await withServer({ models: ["left-model"], script: halves("left") }, (left) =>
    withServer({ models: ["right-model"], script: halves("right") }, (right) =>
      withPage(PAGE, { hosts: [left.root, right.root] }, async (page) => {
        await addServer(page, { root: left.root, name: "Left" });
        await addServer(page, { root: right.root, name: "Right" });
        await page.getByLabel("Compare").check();
        await page.getByLabel("Server A").selectOption({ label: "Left" });
        await page.getByLabel("Server B").selectOption({ label: "Right" });
        await page.locator("#model-0 option", { hasText: "left-model" }).waitFor({ state: "attached" });
        await page.locator("#model-1 option", { hasText: "right-model" }).waitFor({ state: "attached" });
        await ask(page, "hi");
        const texts = await page.locator(".answer .markdown").allInnerTexts();
        assert.deepEqual(texts, ["left first left second", "right first right second"]);
        assert.deepEqual([left.calls[0].body.model, right.calls[0].body.model], ["left-model", "right-model"]);
        await settled(page);
      }),
    ),
  );
});

function deferred() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}
