/** Copies a text and says so. Where the browser forbids that, as on plain http, `select` marks the text for the keyboard. */
export async function copyText(text, name, say, select = () => {}) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${name} is in the clipboard.`);
  } catch {
    select();
    say("The browser does not let this page write to the clipboard: copy by the keyboard.");
  }
}
