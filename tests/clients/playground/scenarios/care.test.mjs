// Care: hostile answers, broken and slow streams, keyboard, screen readers, light and dark, small screens.
import assert from "node:assert/strict";
import test from "node:test";
import { addServer, ask, assertAccessible, chooseServer, chunk, END, SERVERS, setParameter, settled, withPage, withServer } from "./lib.mjs";

const PAGE = `${SERVERS.demo}/playground`;

test("a hostile answer is only text: nothing runs, nothing is fetched, no link leaves the web", () =>
  withPage(`${SERVERS.hostile}/playground`, {}, async (page) => {
    for (const streams of [true, false]) {
      await page.getByRole("button", { name: "Clear" }).click(); // the window has no room for two such answers
      await page.locator("#stream").setChecked(streams);
      await ask(page, "hi");
      const markdown = page.locator(".answer .markdown").last();
      await markdown.getByText("The end of the text.").waitFor();
      assert.equal(await page.evaluate(() => globalThis.owned), undefined);
      const tags = await markdown.evaluate((element) => [...new Set([...element.querySelectorAll("*")].map(({ localName }) => localName))]);
      assert.deepEqual(tags.filter((tag) => /script|img|svg|iframe|form|style|input|object|embed|math/.test(tag)), []);
      const attributes = await markdown.evaluate((element) => [...element.querySelectorAll("*")].flatMap((one) => [...one.attributes].map(({ name }) => name)));
      assert.deepEqual([...new Set(attributes)].filter((name) => !["href", "target", "rel", "class", "tabindex", "role", "aria-label", "align"].includes(name)), []);
      const links = await markdown.locator("a[href]").evaluateAll((all) => all.map((link) => [link.protocol, link.rel, link.target]));
      assert.ok(links.length >= 3);
      for (const link of links) assert.deepEqual(link, ["https:", "noopener noreferrer nofollow", "_blank"]);
      assert.match(await markdown.innerText(), /<script>globalThis\.owned = 'script'<\/script>/);
      // Whoever clicks a link without an address stays on the page.
      await markdown.getByText("click", { exact: true }).click();
      assert.equal(await page.evaluate(() => globalThis.owned), undefined);
      // The page is still visible and as wide as its window, and the table scrolls in its own box.
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
      assert.notEqual(await page.evaluate(() => getComputedStyle(document.body).display), "none");
    }
  }));

// Texts on which Markdown takes minutes, a table of 24,000 cells, and quotes nested deeper than a stack.
const COSTLY = {
  emphasis: "*a **b ".repeat(7000),
  links: "[a](".repeat(12_000),
  table: `${"|a".repeat(300)}|\n${"|-".repeat(300)}|\n${`${"|x".repeat(300)}|\n`.repeat(80)}`,
  quotes: "> ".repeat(24_000),
};

test("texts that are made to stop the page are drawn as they are", () =>
  withServer({ script: (body, response) => response.end(chunk(COSTLY[body.messages.at(-1).content]) + END) }, ({ root }) =>
    withPage(PAGE, { hosts: [root] }, async (page) => {
      await addServer(page, { root, name: "Costly" });
      await chooseServer(page, "Costly");
      for (const [name, text] of Object.entries(COSTLY)) {
        assert.ok(text.length < 50_000);
        await page.getByRole("button", { name: "Clear" }).click();
        await ask(page, name);
        const elements = await page.locator(".answer .markdown *").count();
        assert.ok(elements > 0 && elements < 12_000, `${name} ${elements}`);
        assert.ok((await page.locator(".answer .markdown").innerText()).length > text.length / 10);
      }
    }),
  ));

test("a stream that breaks says so, keeps its text, and can go on", async () => {
  const script = (body, response) => {
    if (body.continue_final_message) response.end(chunk(" end") + END);
    else {
      response.write(chunk("half an ans"));
      setTimeout(() => response.destroy(), 300);
    }
  };
  await withServer({ script }, ({ root }) =>
    withPage(PAGE, { hosts: [root], isQuiet: false }, async (page) => {
      await addServer(page, { root, name: "Fragile" });
      await chooseServer(page, "Fragile");
      await ask(page, "hi");
      assert.match(await page.getByRole("alert").innerText(), /broke off\. The text so far is kept\. the connection broke/);
      assert.equal(await page.locator(".markdown").innerText(), "half an ans");
      await page.getByRole("button", { name: "Continue" }).click();
      await settled(page);
      assert.equal(await page.locator(".markdown").innerText(), "half an ans end");
      assert.equal(await page.getByRole("alert").count(), 0);
    }),
  );
});

test("a slow stream in small pieces arrives whole, and silence is shown", async () => {
  let goOn;
  const isSeen = new Promise((resolve) => (goOn = resolve));
  const script = async (_, response) => {
    for (const byte of Buffer.from(chunk("slow 猫"))) {
      response.write(Buffer.of(byte));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    await isSeen;
    response.end(chunk(" and steady") + END);
  };
  await withServer({ script }, ({ root }) =>
    withPage(PAGE, { hosts: [root] }, async (page) => {
      await addServer(page, { root, name: "Slow" });
      await chooseServer(page, "Slow");
      await page.getByLabel("Message", { exact: true }).fill("hi");
      await page.getByRole("button", { name: "Send" }).click();
      await page.locator(".markdown", { hasText: "slow 猫" }).waitFor();
      await page.getByText(/No sign of the server for \d+ s/).waitFor();
      goOn();
      await settled(page);
      assert.equal(await page.locator(".markdown").innerText(), "slow 猫 and steady");
    }),
  );
});

test("an error in the middle of a stream and a refusal have the server's words", async () => {
  const script = (body, response) => response.end(`${body.seed ? "" : chunk("part")}data: {"error": {"message": "the shard died"}}\n\n`);
  await withServer({ script }, ({ root }) =>
    withPage(PAGE, { hosts: [root] }, async (page) => {
      await addServer(page, { root, name: "Failing" });
      await chooseServer(page, "Failing");
      await ask(page, "hi");
      assert.match(await page.getByRole("alert").innerText(), /broke off.*the shard died/);
      await chooseServer(page, "this server");
      await setParameter(page, "logit_bias", '{"99999999": 1}');
      await ask(page, "hi");
      assert.match(await page.getByRole("alert").last().innerText(), /There is no answer\. 422: .*logit_bias.*99999999/);
    }),
  );
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing serious, ${colorScheme}, in each view`, () =>
    withPage(`${SERVERS.thinking}/playground`, { colorScheme }, async (page) => {
      await assertAccessible(page);
      const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      assert.equal(paper === "rgb(255, 255, 255)", colorScheme === "light");
      await page.getByLabel("Compare").check();
      await page.getByLabel("Tokens", { exact: true }).check();
      await setParameter(page, "max_tokens", "60");
      await ask(page, "hi");
      await page.locator(".token").first().focus();
      await assertAccessible(page);
      await page.getByLabel("Tokens", { exact: true }).uncheck();
      await page.getByRole("button", { name: "Show difference" }).click();
      await assertAccessible(page);
      for (const name of ["Key and servers", "Keep and share"]) {
        await page.getByRole("button", { name }).click();
        await page.getByRole("dialog").waitFor();
        await assertAccessible(page);
        await page.keyboard.press("Escape");
      }
      await page.getByRole("button", { name: "Code" }).click();
      await assertAccessible(page);
    }));
}

test("the page is usable at 360 pixels", () =>
  withPage(`${SERVERS.hostile}/playground`, { viewport: { width: 360, height: 740 } }, async (page) => {
    const fits = () => page.evaluate(() => document.documentElement.scrollWidth);
    assert.equal(await fits(), 360);
    await page.getByLabel("Compare").check();
    await page.getByLabel("Tokens", { exact: true }).check();
    await setParameter(page, "max_tokens", "80");
    await ask(page, "hi");
    assert.equal(await fits(), 360);
    await page.getByLabel("Tokens", { exact: true }).uncheck();
    assert.equal(await fits(), 360);
    for (const name of ["Key and servers", "Keep and share"]) {
      await page.getByRole("button", { name }).click();
      await page.getByRole("dialog").waitFor();
      assert.equal(await fits(), 360);
      await page.keyboard.press("Escape");
    }
    await page.getByRole("button", { name: "Code" }).click();
    assert.equal(await fits(), 360);
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/small.png` });
  }));

test("a whole conversation is held by keys alone", () =>
  withPage(`${SERVERS.hostile}/playground`, {}, async (page) => {
    const press = async (wanted) => {
      for (let times = 0; times < 150; times += 1) {
        await page.keyboard.press("Tab");
        if (await page.evaluate((id) => document.activeElement.id === id, wanted)) return;
      }
      assert.fail(`Tab does not reach ${wanted}`);
    };
    await press("draft");
    await page.keyboard.type("hi");
    await press("send");
    await page.keyboard.press("Enter");
    await settled(page);
    assert.equal(await page.locator("#turns > li").count(), 2);
    await press("show-code");
    await page.keyboard.press("Space");
    await page.locator("#code-text").waitFor();
  }));
