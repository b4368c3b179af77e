// Models: those of the server, further servers with their keys, and servers that a browser cannot read.
import assert from "node:assert/strict";
import test from "node:test";
import { addServer, ask, chooseServer, chunk, END, SERVERS, withPage, withServer } from "./lib.mjs";

const PAGE = `${SERVERS.demo}/playground`;

test("a further server is added with its key, asked, kept over a reload and removed", () =>
  withServer({ models: ["base", "base-with-adapter"], key: "s3", script: (_, response) => response.end(chunk("from afar") + END) }, ({ root, calls }) =>
    withPage(PAGE, { hosts: [root] }, async (page, context) => {
      const own = (await (await fetch(`${SERVERS.demo}/v1/models`)).json()).data.map(({ id }) => id);
      await page.locator("#model-0 option", { hasText: own[0] }).waitFor({ state: "attached" });
      await addServer(page, { root, name: "Afar", key: "s3" });
      await chooseServer(page, "Afar");
      await page.locator("#model-0").selectOption("base-with-adapter");
      await ask(page, "hi");
      assert.match(await page.locator(".answer-body").innerText(), /from afar/);
      assert.deepEqual([calls[0].headers.authorization, calls[0].body.model], ["Bearer s3", "base-with-adapter"]);
      assert.equal("textmill" in calls[0].body, false);

      const second = await context.newPage();
      await second.goto(PAGE);
      await chooseServer(second, "Afar");
      await second.locator("#model-0").selectOption("base");
      await second.getByRole("button", { name: "Key and servers" }).click();
      await second.getByRole("button", { name: "Remove Afar" }).click();
      assert.deepEqual(await second.locator("#server-0 option").allInnerTexts(), ["this server"]);
    }),
  ));

test("a server that forbids the page to read its answers is explained", () =>
  withServer({ allowsOrigin: false, script: (_, response) => response.end() }, ({ root }) =>
    withPage(PAGE, { hosts: [root], isQuiet: false }, async (page) => {
      await addServer(page, { root, name: "Closed" });
      await chooseServer(page, "Closed");
      const error = page.locator("#columns .error");
      await error.waitFor();
      assert.match(await error.innerText(), /does not allow this page to read its answers \(CORS\)/);
      assert.match(await error.innerText(), new RegExp(`--cors-allow-origin ${SERVERS.demo}`));
      await ask(page, "hi");
      assert.match(await page.getByRole("alert").innerText(), /There is no answer\. .*CORS/);
    }),
  ));

test("a key that the server refuses is told, and so is an address that is none", () =>
  withServer({ key: "right", script: (_, response) => response.end() }, ({ root }) =>
    withPage(PAGE, { hosts: [root] }, async (page) => {
      await addServer(page, { root, name: "Keyed", key: "wrong" });
      await chooseServer(page, "Keyed");
      await page.locator("#columns .error", { hasText: "401: the key is wrong" }).waitFor();
      await page.getByRole("button", { name: "Key and servers" }).click();
      await page.getByLabel("Base URL").fill("ftp://x/v1");
      await page.getByRole("button", { name: "Add the server" }).click();
      await page.getByRole("alert").getByText("must begin with http").waitFor();
    }),
  ));

test("the server's own key is typed in, works behind a prefix and stays in the tab", () =>
  withPage(`${SERVERS.locked}/llm/playground`, {}, async (page, context) => {
    await page.locator("#status", { hasText: "This server asks for its API key" }).waitFor();
    await page.locator(".field[data-name=temperature]").waitFor(); // the parameters need no key
    await page.getByRole("button", { name: "Key and servers" }).click();
    await page.getByLabel("API key of this server").fill("s3cret");
    await page.getByRole("button", { name: "Keep the key" }).click();
    await page.locator("#model-0 option", { hasText: "fake/model" }).waitFor({ state: "attached" });
    await page.locator(".field[data-name=max_tokens] input").fill("5");
    await ask(page, "hi");
    assert.match(await page.locator(".answer-body").innerText(), /abcde/);
    assert.equal(page.sent.at(-1).path, "/llm/v1/chat/completions");
    assert.equal(page.sent.at(-1).headers.authorization, "Bearer s3cret");
    const kept = await page.evaluate(() => [JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage })]);
    assert.deepEqual(kept.map((text) => text.includes("s3cret")), [false, true]);
    await page.getByRole("button", { name: "Code" }).click();
    assert.equal((await page.locator("#code").innerText()).includes("s3cret"), false);
    const other = await context.newPage();
    await other.goto(`${SERVERS.locked}/llm/playground`);
    await other.locator("#status", { hasText: "This server asks for its API key" }).waitFor();
  }));

test("images are attached once the server says that its model takes them", () =>
  withServer({ script: (_, response) => response.end(chunk("a square") + END) }, ({ root, calls }) =>
    withPage(PAGE, { hosts: [root] }, async (page) => {
      assert.equal(await page.locator("#images").isVisible(), false);
      await page.route(`${root}/v1/models`, (route) =>
        route.fulfill({ headers: { "access-control-allow-origin": "*" }, json: { data: [{ id: "seeing", input_modalities: ["text", "image"] }] } }),
      );
      await addServer(page, { root, name: "Seeing" });
      await chooseServer(page, "Seeing");
      const png = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==", "base64");
      await page.getByLabel("Attach images").setInputFiles({ name: "a.png", mimeType: "image/png", buffer: png });
      await page.locator("#images img").waitFor();
      for (const [type, name] of [["drop", "dataTransfer"], ["paste", "clipboardData"]]) {
        await page.locator("#draft").evaluate(
          (area, [kind, field, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
            const event = kind === "drop" ? new DragEvent(kind, { [field]: transfer, cancelable: true }) : new ClipboardEvent(kind, { [field]: transfer, cancelable: true });
            area.dispatchEvent(event);
          },
          [type, name, [...png]],
        );
      }
      await page.locator("#images img").nth(2).waitFor();
      await page.getByLabel("Address of an image").fill("https://pictures.example/cat.png");
      await page.getByRole("button", { name: "Add the address" }).click();
      await ask(page, "What is this?");
      const { content } = calls.at(-1).body.messages[0];
      assert.deepEqual(content[0], { type: "text", text: "What is this?" });
      const urls = content.slice(1).map((part) => part.image_url.url);
      const data = `data:image/png;base64,${png.toString("base64")}`;
      assert.deepEqual(urls, [data, data, data, "https://pictures.example/cat.png"]);
    }),
  ));
