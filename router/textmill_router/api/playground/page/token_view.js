// Tokens with their probabilities as shades. Arrow keys go from token to token; a panel shows the alternatives.
import { h } from "./dom.js";
import { percent, probability, ranked, shade, spoken, visible } from "./token_shades.js";

const MAX_TOKENS = 5000; // elements; what follows is counted only

/** Returns an element with the tokens. `label` names the list for screen readers. */
export function tokenView(tokens, label) {
  const panel = h("div", { class: "alternatives", role: "status" }, h("p", {}, "Point at a token, or move with the arrow keys."));
  const shown = tokens.slice(0, MAX_TOKENS);
  const buttons = shown.map((token, index) => tokenButton(token, index === 0, () => show(panel, token)));
  const list = h("div", { class: "tokens", role: "group", "aria-label": label, on: { keydown: (event) => move(event, buttons) } }, buttons);
  const rest = tokens.length - shown.length;
  return h("div", { class: "token-view" }, list, rest > 0 && h("p", {}, `${rest} further tokens are not shown.`), panel);
}

function tokenButton(token, isFirst, onShow) {
  const value = probability(token.logprob);
  const more = token.id === undefined ? "" : `, id ${token.id}`;
  const on = { focus: onShow, pointerenter: onShow, click: onShow };
  const attributes = { type: "button", class: `token ${shade(value)}`, tabIndex: isFirst ? 0 : -1, "aria-label": spoken(token) + more, on };
  return h("button", attributes, visible(token.text));
}

function move(event, buttons) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
  const at = buttons.indexOf(document.activeElement);
  if (step === undefined || at < 0) return;
  event.preventDefault();
  const next = buttons[Math.max(0, Math.min(buttons.length - 1, at + step))];
  buttons[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function show(panel, token) {
  const rows = ranked(token).map(({ text, logprob, isChosen }) => {
    const value = probability(logprob);
    const bar = h("meter", { min: 0, max: 1, value: String(value), "aria-label": percent(value) });
    const name = h("code", {}, JSON.stringify(text));
    return h("tr", { class: isChosen ? "chosen" : "" }, h("td", {}, name, isChosen && " (taken)"), h("td", {}, percent(value)), h("td", {}, bar));
  });
  const id = token.id === undefined ? "" : `, id ${token.id}`;
  const head = h("p", {}, "Token ", h("code", {}, JSON.stringify(token.text)), id);
  panel.replaceChildren(head, rows.length > 0 ? h("table", {}, h("tbody", {}, rows)) : "No probability was asked for.");
}
