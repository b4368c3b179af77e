// Puts the page together.
import { App } from "./app.js";
import { CodeView } from "./code_view.js";
import { ColumnsView } from "./columns_view.js";
import { ConversationView } from "./conversation_view.js";
import { stateOfRequest } from "./docs_request.js";
import { grow } from "./dom.js";
import { decodeFragment } from "./fragment.js";
import { ImageControl } from "./images.js";
import { fillKeepDialog } from "./keep_dialog.js";
import { sendForJson } from "./network.js";
import { readParameters, takesTimings } from "./openapi.js";
import { ParameterForm } from "./parameter_form.js";
import { Presets } from "./presets.js";
import { PromptView } from "./prompt_view.js";
import { fillServersDialog } from "./servers_dialog.js";
import { Servers, takesImages } from "./servers.js";
import { readApiMessage, readState } from "./state.js";
import { browserStore, tabStore } from "./storage.js";
import { Store } from "./store.js";

const TICK_MS = 1000;
const $ = (id) => document.getElementById(id);
const radios = (name) => document.querySelectorAll(`input[name=${name}]`);
const root = new URL(".", location.href).href.replace(/\/$/, ""); // with the prefix of a proxy, if there is one

const store = new Store(tabStore);
const app = new App({
  store,
  servers: new Servers(root, browserStore, tabStore),
  presets: new Presets(browserStore),
  say: (sentence) => ($("status").textContent = sentence),
});
const conversation = new ConversationView(app, $("turns"));
const forms = [new ParameterForm(app, 0), new ParameterForm(app, 1)];
const code = new CodeView(app, $("code"));
const images = new ImageControl(app, $("images"), $("draft"));
const columns = new ColumnsView(app, $("columns"), (model) => images.show(takesImages(model, app.info)));
new PromptView(app, $("prompt-view"));
app.onRun = (answer) => conversation.update(answer);
let formColumn = 0;
let isCode = false;
let drawn = ""; // what the parameter form was drawn for

function draw() {
  const { state } = app;
  const isChat = state.mode === "chat";
  for (const radio of radios("mode")) radio.checked = radio.value === state.mode;
  for (const name of ["compare", "tokens", "stream"]) $(name).checked = state[name];
  $("chat-tools").hidden = !isChat;
  $("draft").hidden = !isChat;
  $("prompt").hidden = isChat;
  $("composer-label").textContent = isChat ? "Message" : "Prompt";
  $("composer-label").htmlFor = isChat ? "draft" : "prompt";
  for (const [id, text] of [["draft", state.draft], ["prompt", state.prompt]]) {
    if ($(id).value !== text) $(id).value = text;
    grow($(id));
  }
  $("send").disabled = app.isRunning;
  $("stop").disabled = !app.isRunning;
  $("undo").disabled = !store.canUndo;
  $("page").hidden = isCode;
  $("code").hidden = !isCode;
  $("show-code").setAttribute("aria-pressed", String(isCode));
  $("form-columns").hidden = !state.compare;
  if (!state.compare) formColumn = 0;
  for (const radio of radios("form-column")) radio.checked = Number(radio.value) === formColumn;
  columns.draw();
  images.draw();
  conversation.draw();
  drawForm();
  if (isCode) code.draw();
}

/** Draws the parameters after a change, because a new form takes focus and text of a control. */
function drawForm() {
  const wanted = formKey();
  if (wanted === drawn) return;
  const form = forms[formColumn];
  form.draw();
  $("form").replaceChildren(form.element);
  drawn = wanted;
}

function formKey() {
  const { mode, columns: asked } = app.state;
  return JSON.stringify([formColumn, mode, asked[formColumn].parameters[mode], app.parameters !== null]);
}

function listen() {
  const on = (id, event, listener) => $(id).addEventListener(event, listener);
  for (const radio of radios("mode")) {
    radio.addEventListener("change", () => store.update((state) => (state.mode = radio.value)));
  }
  for (const name of ["compare", "tokens", "stream"]) {
    on(name, "change", (event) => store.update((state) => (state[name] = event.target.checked)));
  }
  for (const radio of radios("form-column")) {
    radio.addEventListener("change", () => {
      formColumn = Number(radio.value);
      draw();
    });
  }
  for (const name of ["draft", "prompt"]) {
    on(name, "input", (event) => {
      app.state[name] = event.target.value;
      grow(event.target);
      store.touch();
    });
  }
  on("composer", "submit", (event) => {
    event.preventDefault();
    app.send();
  });
  on("form", "input", () => (drawn = formKey()));
  on("stop", "click", () => app.stop());
  on("undo", "click", () => store.undo());
  on("clear", "click", () => store.update((state) => (state.messages = []), { canUndo: true }));
  on("add", "click", () => store.update((state) => state.messages.push(readApiMessage({ role: $("add-role").value })), { canUndo: true }));
  on("show-code", "click", () => {
    isCode = !isCode;
    draw();
  });
  on("show-servers", "click", () => {
    fillServersDialog($("servers"), app, () => (load(), draw()));
    $("servers").showModal();
  });
  on("show-keep", "click", async () => {
    await fillKeepDialog($("keep"), app, formColumn);
    $("keep").showModal();
  });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) app.send();
    if (event.key === "Escape" && app.isRunning) app.stop();
  });
  addEventListener("pagehide", () => store.save());
  addEventListener("hashchange", takeFragment);
  setInterval(() => app.isRunning && conversation.tick(), TICK_MS);
}

/** Asks the page's own server what it takes. */
async function load() {
  const key = app.servers.keyOf("");
  const [document_, info] = await Promise.allSettled([sendForJson(`${root}/openapi.json`, { key }), sendForJson(`${root}/info`, { key })]);
  if (document_.status === "fulfilled") {
    app.parameters = readParameters(document_.value);
    app.takesTimings = takesTimings(document_.value);
  } else app.say(`The parameters cannot be read: ${document_.reason.message}`);
  if (info.status === "fulfilled") app.info = info.value;
  else if (info.reason.status === 401) app.say("This server asks for its API key: open “Key and servers”.");
  draw();
}

/** Sets the state of a link, and takes the state out of the address. */
async function takeFragment() {
  try {
    const found = await decodeFragment(location.hash);
    if (found === null) return;
    store.replace(found.state === undefined ? stateOfRequest(found.request) : readState(found.state));
    app.say("The state of the link is set.");
  } catch (error) {
    app.say(`The link cannot be read: ${error.message}`);
  }
  history.replaceState(null, "", location.pathname + location.search);
}

store.subscribe(draw);
listen();
draw();
await takeFragment();
await load();
document.documentElement.dataset.ready = "true";
