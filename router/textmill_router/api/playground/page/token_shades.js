// Tokens as the page shows them, and as a screen reader says them.

export function probability(logprob) {
  return logprob === null || logprob === undefined ? null : Math.exp(logprob);
}

/** Returns a probability as a percentage with as many digits as tell something. */
export function percent(value) {
  if (value === null) return "no probability";
  if (value >= 0.9995) return "100 %";
  if (value >= 0.1) return `${(100 * value).toFixed(1)} %`;
  return value >= 0.0001 ? `${(100 * value).toFixed(2)} %` : "< 0.01 %";
}

/** Returns one of the classes p0 (improbable) to p9 of the shades, or "" without a probability. */
export function shade(value) {
  return value === null ? "" : `p${Math.min(9, Math.floor(10 * value))}`;
}

/** Returns the text of a token with signs for line ends and tabs, and a word for a token without text. */
export function visible(text) {
  return text === "" ? "∅" : text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
}

export function spoken(token) {
  const text = token.text.trim() === "" ? JSON.stringify(token.text) : token.text;
  return `${text}, ${percent(probability(token.logprob))}`;
}

/** Returns the alternatives of a token by falling probability, with the token itself among them. */
export function ranked(token) {
  const others = token.alternatives.filter((other) => other.text !== token.text);
  return [{ text: token.text, logprob: token.logprob, isChosen: true }, ...others.map((other) => ({ ...other, isChosen: false }))]
    .filter((one) => one.logprob !== null && one.logprob !== undefined)
    .sort((one, other) => other.logprob - one.logprob);
}
