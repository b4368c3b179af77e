// What all scenarios share: a browser, pages that watch for mistakes, and scripted servers of other people.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const LIMIT_MS = 40_000;
/** The addresses of the servers that the runner has started, by name. */
export const SERVERS = JSON.parse(process.env.PLAYGROUND_SERVERS);
const AXE = fileURLToPath(import.meta.resolve("axe-core/axe.min.js"));

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
after(() => browser.close());

/**
 * Runs `act` with a new page in a browser of its own. Afterwards no script has failed, the policy has blocked nothing,
 * and the page has asked no host but its own and those of `hosts`. `page.sent` has the bodies of the calls by path.
 */
export async function withPage(address, { hosts = [], isQuiet = true, viewport = { width: 1200, height: 900 }, ...options }, act) {
  const context = await browser.newContext({ viewport, ...options });
  context.setDefaultTimeout(LIMIT_MS);
  await context.addInitScript({ path: AXE });
  const problems = [];
  const watch = (page) => {
    page.sent = [];
    page.on("pageerror", (error) => problems.push(error.message));
    page.on("console", (message) => message.type() === "error" && isMistake(message.text(), isQuiet) && problems.push(message.text()));
    page.on("request", (request) => {
      const url = new URL(request.url());
      const known = [new URL(address).origin, ...hosts];
      if (url.protocol.startsWith("http") && !known.includes(url.origin)) problems.push(`asked ${url}`);
      if (request.method() === "POST") page.sent.push({ path: url.pathname, body: request.postDataJSON(), headers: request.headers() });
    });
  };
  context.on("page", watch);
  try {
    const page = await context.newPage();
    await page.goto(address);
    if (new URL(address).pathname.endsWith("/playground")) await page.waitForSelector("html[data-ready]");
    await act(page, context);
  } finally {
    await context.close();
  }
  assert.deepEqual(problems, []);
}

// A browser reports each answer that is no 2xx, also where the page shows it to the user.
function isMistake(text, isQuiet) {
  return !/Failed to load resource/.test(text) && (isQuiet || !/CORS policy|ERR_/.test(text));
}

/** Sends a message in chat mode and waits until the answers have ended. */
export async function ask(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
  await settled(page);
}

/** Waits until no answer runs. */
export async function settled(page) {
  await page.locator("#send:not([disabled])").waitFor();
  await page.locator("#stop[disabled]").waitFor();
}

/** Sets the control of a parameter. */
export async function setParameter(page, name, text) {
  const control = page.locator(`.field[data-name="${name}"]`).locator("input, select, textarea");
  await page.locator("details", { has: control }).evaluateAll((groups) => groups.forEach((group) => (group.open = true)));
  if ((await control.evaluate((element) => element.localName)) === "select") await control.selectOption(text);
  else await control.fill(text);
}

/** Returns the numbers of an answer by their names. */
export async function metrics(answer) {
  const pairs = await answer.locator("dl.metrics > div").evaluateAll((rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent)));
  return Object.fromEntries(pairs);
}

/** Asserts that axe-core finds nothing serious or critical. */
export async function assertAccessible(page) {
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  assert.deepEqual(serious.map(({ id, nodes }) => [id, nodes.map((node) => `${node.html} ${node.failureSummary}`)]), []);
}

/**
 * Runs `act` with a server of OpenAI's API that answers by a script. `script(body, response)` writes the answer of a chat
 * call, whose headers are written already. `calls` has the headers and bodies that came.
 */
export async function withServer({ models = ["other-model"], key = null, allowsOrigin = true, script }, act) {
  const calls = [];
  const server = createServer(async (request, response) => {
    if (allowsOrigin) response.setHeader("access-control-allow-origin", "*");
    if (request.method === "OPTIONS") {
      response.setHeader("access-control-allow-headers", "*, authorization");
      response.end();
      return;
    }
    if (key !== null && request.headers.authorization !== `Bearer ${key}`) {
      response.writeHead(401, { "content-type": "application/json" }).end('{"error": {"message": "the key is wrong"}}');
      return;
    }
    if (request.url === "/v1/models") {
      response.end(JSON.stringify({ object: "list", data: models.map((id) => ({ id, object: "model" })) }));
      return;
    }
    let text = "";
    for await (const piece of request) text += piece;
    const body = JSON.parse(text);
    calls.push({ path: request.url, headers: request.headers, body });
    response.writeHead(200, { "content-type": "text/event-stream" });
    await script(body, response);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const root = `http://127.0.0.1:${server.address().port}`;
  try {
    await act({ root, calls });
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

/** Returns a chunk of a chat stream. */
export function chunk(content, more = {}) {
  return `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content }, finish_reason: null, ...more }] })}\n\n`;
}

export const END = `${chunk("", { finish_reason: "stop" })}data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}\n\ndata: [DONE]\n\n`;

/** Adds a server in the dialog of the page. */
export async function addServer(page, { root, name, key = "" }) {
  await page.getByRole("button", { name: "Key and servers" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Base URL").fill(`${root}/v1`);
  await dialog.getByLabel("Name").fill(name);
  await dialog.getByLabel("Key", { exact: true }).fill(key);
  await dialog.getByRole("button", { name: "Add the server" }).click();
  await dialog.getByRole("button", { name: "Close", exact: true }).click();
}

/** Chooses a server and waits until its models are there. */
export async function chooseServer(page, name, column = 0) {
  await page.locator(`#server-${column}`).selectOption({ label: name });
}
