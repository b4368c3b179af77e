// /docs: Swagger UI without a network, with key entry, try-it and a link that opens the request in the playground.
import assert from "node:assert/strict";
import test from "node:test";
import { SERVERS, withPage } from "./lib.mjs";

async function opened(page, operation) {
  await page.locator(`#operations-Textmill-${operation} .opblock-summary-control`).click();
  return page.locator(`#operations-Textmill-${operation}`);
}

test("a request is tried, whole and streamed, and opens in the playground", () =>
  withPage(`${SERVERS.demo}/docs`, {}, async (page, context) => {
    const block = await opened(page, "chat_completions");
    const body = { messages: [{ role: "user", content: "What is the capital of France? 猫" }], max_tokens: 12, temperature: 0 };
    const answer = block.locator(".live-responses-table .response .response-col_description").first();
    for (const stream of [false, true]) {
      await block.locator("textarea.body-param__text").fill(JSON.stringify({ ...body, stream }));
      await block.locator("button.execute").click();
      await answer.getByText(stream ? "[DONE]" : "Paris").first().waitFor();
    }
    const [playground] = await Promise.all([context.waitForEvent("page"), block.getByRole("link", { name: "Open this request in the playground" }).click()]);
    await playground.getByLabel("Text of message 1, user").waitFor();
    assert.equal(await playground.getByLabel("Text of message 1, user").inputValue(), body.messages[0].content);
    assert.equal(await playground.getByLabel("max_tokens", { exact: true }).inputValue(), "12");
    assert.equal(await playground.locator("#stream").isChecked(), true);
    await playground.getByRole("button", { name: "Send" }).click();
    await playground.locator(".markdown", { hasText: "Paris" }).waitFor();
    await playground.close();
    await page.getByRole("link", { name: "Open the playground" }).click();
    await page.waitForURL("**/playground");
    await page.getByRole("link", { name: "API" }).click();
    await page.waitForURL("**/docs");
  }));

test("the key is typed in, and calls go below the prefix of the proxy", () =>
  withPage(`${SERVERS.locked}/llm/docs`, {}, async (page) => {
    const block = await opened(page, "get_model_info");
    const execute = block.locator("button.execute");
    await execute.click();
    await block.locator(".live-responses-table .response-col_status", { hasText: "401" }).first().waitFor();
    await page.locator("button.authorize").first().click();
    const form = page.locator(".auth-container").first();
    await form.locator("input").fill("s3cret");
    await form.locator("button.authorize").click();
    await page.locator(".btn-done").first().click();
    const [request] = await Promise.all([page.waitForRequest("**/llm/info"), execute.click()]);
    assert.equal(request.headers().authorization, "Bearer s3cret");
    await block.getByText('"model_id": "fake/model"').waitFor();
  }));
