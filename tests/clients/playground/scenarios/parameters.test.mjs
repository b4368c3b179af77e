// Parameters: from /openapi.json, only changed ones are sent; presets, export, import and a link.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { ask, SERVERS, setParameter, withPage } from "./lib.mjs";

const PAGE = `${SERVERS.thinking}/playground`;
const MODES = [["Chat", "ChatRequest"], ["/v1/completions", "CompletionRequest"], ["/generate", "GenerateParameters"]];
const OWN = ["messages", "prompt", "inputs", "model", "stream", "textmill"];

test("every parameter of the three routes has a control with its range and description", () =>
  withPage(PAGE, {}, async (page) => {
    const { schemas } = (await (await fetch(`${SERVERS.thinking}/openapi.json`)).json()).components;
    for (const [mode, schema] of MODES) {
      await page.getByLabel(mode, { exact: true }).check();
      const fields = Object.entries(schemas[schema].properties).filter(([name]) => !OWN.includes(name));
      for (const [name, { description }] of fields) {
        const tip = await page.locator(`.field[data-name="${name}"] .tip`).textContent();
        assert.ok(tip.startsWith(description), `${mode} ${name}: ${tip}`);
      }
      assert.equal(await page.locator(".field").count(), fields.length);
    }
    await page.getByLabel("Chat", { exact: true }).check();
    const tip = page.locator(".field[data-name=min_p] .tip");
    assert.match(await tip.textContent(), /number, at least 0 and less than 1; default 0/);
    await page.getByLabel("Find a parameter").fill("min_p");
    assert.deepEqual(await page.locator(".field:visible label").allInnerTexts(), ["min_p"]);
    assert.equal(await tip.isVisible(), false);
    await page.getByLabel("min_p", { exact: true }).focus();
    assert.equal(await tip.isVisible(), true);
  }));

test("only what was changed is sent, and a bad value is not sent", () =>
  withPage(PAGE, {}, async (page) => {
    const plain = ["messages", "model", "stream", "stream_options"];
    const keys = () => Object.keys(page.sent.at(-1).body).filter((name) => name !== "textmill").sort();
    await ask(page, "hi");
    assert.deepEqual(keys(), plain);
    await setParameter(page, "temperature", "0.5");
    await setParameter(page, "ignore_eos", "false");
    await setParameter(page, "stop", '["END", "\\n\\n\\n"]');
    await ask(page, "hi");
    assert.deepEqual(keys(), ["ignore_eos", ...plain.slice(0, 3), "stop", "stream_options", "temperature"].sort());
    const { temperature, ignore_eos, stop } = page.sent.at(-1).body;
    assert.deepEqual([temperature, ignore_eos, stop], [0.5, false, ["END", "\n\n\n"]]);

    await page.getByRole("button", { name: "Reset ignore_eos" }).click();
    const count = page.sent.length;
    for (const [name, text, words] of [
      ["temperature", "-1", "wanted at least 0, found -1"],
      ["tools", '[{"type": "function"}]', "tools[0].function must be an object"],
      ["response_format", '{"type": "json_schema"}', "json_schema.schema must be a JSON schema"],
      ["tools", "{", "not JSON"],
    ]) {
      await setParameter(page, name, text);
      const row = page.locator(`.field[data-name="${name}"]`);
      await row.locator(".error", { hasText: words }).waitFor();
      assert.equal(await row.locator("input, textarea").getAttribute("aria-invalid"), "true");
      await page.getByRole("button", { name: "Send" }).click();
      await page.locator("#status", { hasText: `Correct the parameter ${name}` }).waitFor();
      await row.getByRole("button", { name: "Reset" }).click();
    }
    assert.equal(page.sent.length, count);
    await setParameter(page, "response_format", '{"type": "json_object"}');
    await page.getByRole("button", { name: "Reset all" }).click();
    assert.equal(await page.locator(".field[data-name=response_format] textarea").inputValue(), "");
    await ask(page, "hi");
    assert.deepEqual(keys(), plain);
  }));

test("presets, a file and a link bring the state back, and the link stays in the browser", () =>
  withPage(PAGE, { permissions: ["clipboard-read", "clipboard-write"] }, async (page, context) => {
    await setParameter(page, "seed", "7");
    await ask(page, "Remember 猫");
    await page.getByRole("button", { name: "Keep and share" }).click();
    await page.getByLabel("Name of a new preset").fill("lucky");
    await page.getByRole("button", { name: "Save the parameters" }).click();
    await page.locator("#preset-choice option", { hasText: "lucky" }).waitFor({ state: "attached" });
    await page.evaluate(() => {
      const server = { id: "http://127.0.0.1:9/api", name: "elsewhere", root: "http://127.0.0.1:9/api", key: "secret" };
      localStorage.setItem("textmill.servers", JSON.stringify([server]));
    });
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Export as JSON" }).click()]);
    const file = await readFile(await download.path());
    assert.equal(JSON.parse(file).messages[0].content, "Remember 猫");
    assert.equal(file.includes("secret"), false);
    await page.getByRole("button", { name: "Copy the link" }).click();
    const link = await page.evaluate(() => navigator.clipboard.readText());
    assert.match(link, /\/playground#state=/);
    await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();

    const opened = await context.newPage();
    const asked = [];
    opened.on("request", (request) => asked.push(request.url()));
    await opened.goto(link);
    await opened.getByLabel("Text of message 1, user").waitFor();
    assert.equal(await opened.getByLabel("Text of message 1, user").inputValue(), "Remember 猫");
    assert.equal(await opened.getByLabel("seed", { exact: true }).inputValue(), "7");
    assert.equal(new URL(opened.url()).hash, "");
    assert.equal(asked.some((url) => url.includes(link.slice(-30))), false);

    const fresh = await context.newPage();
    await fresh.goto(PAGE);
    await fresh.getByRole("button", { name: "Keep and share" }).click();
    await fresh.getByRole("button", { name: "Set", exact: true }).click();
    assert.equal(await fresh.getByLabel("seed", { exact: true }).inputValue(), "7");
    await fresh.getByRole("button", { name: "Keep and share" }).click();
    await fresh.getByRole("dialog").waitFor();
    await fresh.getByLabel("Import a file").setInputFiles({ name: "bad.json", mimeType: "application/json", buffer: Buffer.from('{"mode": "poem"}') });
    await fresh.getByRole("alert").getByText("mode must be one of").waitFor();
    for (const [wrong, sentence] of [[{ presets: [{ name: "x", mode: "chat" }] }, "a preset lacks"], [{ servers: [{ name: "x" }] }, "wanted an address"]]) {
      await fresh.getByLabel("Import a file").setInputFiles({ name: "bad.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify(wrong)) });
      await fresh.getByRole("alert").getByText(sentence).waitFor();
    }
    const kept = () => fresh.evaluate(() => ["presets", "servers"].map((name) => JSON.parse(localStorage.getItem(`textmill.${name}`))));
    const [before] = await kept();
    await fresh.evaluate(() => localStorage.clear());
    await fresh.getByLabel("Import a file").setInputFiles({ name: "state.json", mimeType: "application/json", buffer: file });
    await fresh.getByLabel("Text of message 1, user").waitFor();
    const [presets, servers] = await kept();
    assert.deepEqual(presets, before);
    assert.deepEqual(servers.map(({ name, root, key }) => [name, root, key]), [["elsewhere", "http://127.0.0.1:9/api", ""]]);

    await fresh.goto(`${PAGE}#state=AAAA`);
    await fresh.getByText("The link cannot be read").waitFor();
  }));
