// Images, in front of a model that reads them: attached, shown, sent, kept in the next turn, and refused by the server.
import assert from "node:assert/strict";
import test from "node:test";
import { ask, SERVERS, setParameter, settled, withPage } from "./lib.mjs";

const PAGE = `${SERVERS.seeing}/playground`;
// Squares of 24 pixels in red, green and blue.
const [RED, GREEN, BLUE] = SERVERS.pictures.map((text) => Buffer.from(text, "base64"));
const dataUrl = (bytes) => `data:image/png;base64,${bytes.toString("base64")}`;
const urlsOf = (message) => message.content.filter((part) => part.type === "image_url").map((part) => part.image_url.url);

/** Returns how many images the server's shard was given. */
async function numPuts() {
  return Number(/^textmill_media_puts_total (.*)$/m.exec(await (await fetch(`${SERVERS.seeing}/metrics`)).text())[1]);
}

async function answerOf(messages, limit) {
  const body = { model: "tgi", messages, max_tokens: limit, temperature: 0 };
  const answer = await fetch(`${SERVERS.seeing}/v1/chat/completions`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return (await answer.json()).choices[0].message.content;
}

/** Lets the page see a file that is dropped on the message, or pasted into it. */
function give(page, kind, bytes) {
  return page.locator("#draft").evaluate(
    (area, [type, values]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(values)], "picture.png", { type: "image/png" }));
      const event = type === "drop" ? new DragEvent(type, { dataTransfer: transfer, cancelable: true }) : new ClipboardEvent(type, { clipboardData: transfer, cancelable: true });
      area.dispatchEvent(event);
    },
    [kind, [...bytes]],
  );
}

async function prepared(page) {
  await page.getByLabel("Attach images").waitFor();
  await setParameter(page, "temperature", "0");
  await setParameter(page, "max_tokens", "8");
}

test("images by file, drop and paste are shown, sent as image_url, and stay in the next turn", () =>
  withPage(PAGE, {}, async (page) => {
    await prepared(page);
    await page.getByLabel("Attach images").setInputFiles({ name: "red.png", mimeType: "image/png", buffer: RED });
    await page.locator("#images img").waitFor();
    await give(page, "drop", GREEN);
    await page.locator("#images img").nth(1).waitFor();
    await give(page, "paste", BLUE);
    await page.locator("#images img").nth(2).waitFor();
    await page.getByRole("button", { name: "Remove image 2" }).click();
    await ask(page, "What is this?");

    const [turn, answer] = [page.locator("#turns > li").nth(0), page.locator("#turns > li").nth(1)];
    const shown = await turn.locator("img").evaluateAll((all) => all.map((image) => [image.src, image.naturalWidth, image.alt]));
    assert.deepEqual(shown, [[dataUrl(RED), 24, "attached image"], [dataUrl(BLUE), 24, "attached image"]]);
    assert.equal(await page.locator("#images img").count(), 0);
    const first = page.sent.at(-1);
    assert.equal(first.path, "/v1/chat/completions");
    assert.equal(first.body.messages[0].content[0].text, "What is this?");
    assert.deepEqual(urlsOf(first.body.messages[0]), [dataUrl(RED), dataUrl(BLUE)]);
    assert.equal((await answer.locator(".answer-body").textContent()).trim(), (await answerOf(first.body.messages, 8)).trim());

    const before = await numPuts();
    assert.ok(before >= 2);
    await ask(page, "And now?");
    const second = page.sent.at(-1).body.messages;
    assert.deepEqual(second[0], first.body.messages[0]);
    assert.deepEqual([second.length, second[2].content], [3, "And now?"]);
    assert.equal(await numPuts(), before); // the shard has the images
    assert.equal(await turn.locator("img").count(), 2);
    // The text of a turn is edited, and the images stay.
    await page.getByLabel("Text of message 1, user").fill("What was this?");
    await page.getByRole("button", { name: "Answer from here, message 1" }).click();
    await settled(page);
    const edited = page.sent.at(-1).body.messages;
    assert.deepEqual([edited.length, edited[0].content[0].text, urlsOf(edited[0]).length], [1, "What was this?", 2]);
  }));

test("what the server says of an image that it does not read is shown, and the conversation goes on without", () =>
  withPage(PAGE, {}, async (page) => {
    await prepared(page);
    await give(page, "drop", Buffer.from("no picture"));
    await page.locator("#images img").waitFor();
    await ask(page, "What is this?");
    assert.match(await page.getByRole("alert").innerText(), /messages\[0\]\.content\[1\]\.image_url.*the image cannot be used/s);
    await page.getByRole("button", { name: "Clear" }).click();
    await page.getByLabel("Address of an image").fill("https://pictures.example/cat.png");
    await page.getByRole("button", { name: "Add the address" }).click();
    await ask(page, "And this?");
    assert.match(await page.getByRole("alert").innerText(), /image_url/);
    assert.equal(await page.locator("#turns > li").nth(0).locator("img").count(), 0); // no other host is asked
    await page.getByRole("button", { name: "Clear" }).click();
    await ask(page, "Some text");
    assert.equal(await page.getByRole("alert").count(), 0);
  }));

test("a model that reads no images has no control for them, and its refusal is shown where a link brings one", () =>
  withPage(PAGE, { permissions: ["clipboard-read", "clipboard-write"] }, async (page) => {
    await prepared(page);
    await give(page, "paste", RED);
    await page.locator("#images img").waitFor();
    await page.getByLabel("Message", { exact: true }).fill("What is this?");
    await page.getByRole("button", { name: "Keep and share" }).click();
    await page.getByRole("button", { name: "Copy the link" }).click();
    const fragment = new URL(await page.evaluate(() => navigator.clipboard.readText())).hash;
    await withPage(`${SERVERS.demo}/playground${fragment}`, {}, async (blind) => {
      await blind.locator("#model-0 option").first().waitFor({ state: "attached" });
      assert.equal(await blind.getByLabel("Attach images").isVisible(), false);
      await blind.getByRole("button", { name: "Send" }).click();
      await settled(blind);
      assert.match(await blind.getByRole("alert").innerText(), /this model takes no images/);
    });
  }));
