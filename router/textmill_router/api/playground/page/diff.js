// The difference of two texts, word by word.

const MAX_CELLS = 4_000_000; // of the table; longer texts are compared by lines, or not at all

/** Returns runs `{kind, text}`, where kind is same, left or right. */
export function diffTexts(left, right) {
  for (const pattern of [/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu, /[^\n]*\n|[^\n]+$/g]) {
    const runs = diffLists(left.match(pattern) ?? [], right.match(pattern) ?? []);
    if (runs !== null) return merge(runs);
  }
  return merge([{ kind: "left", text: left }, { kind: "right", text: right }]);
}

function diffLists(left, right) {
  let head = 0;
  while (head < left.length && head < right.length && left[head] === right[head]) head += 1;
  let tail = 0;
  const shorter = Math.min(left.length, right.length) - head;
  while (tail < shorter && left[left.length - 1 - tail] === right[right.length - 1 - tail]) tail += 1;
  const middle = diffMiddle(left.slice(head, left.length - tail), right.slice(head, right.length - tail));
  if (middle === null) return null;
  const same = (words) => words.map((text) => ({ kind: "same", text }));
  return [...same(left.slice(0, head)), ...middle, ...same(left.slice(left.length - tail))];
}

function diffMiddle(left, right) {
  const width = right.length + 1;
  if ((left.length + 1) * width > MAX_CELLS) return null;
  // lengths[i * width + j] is the length of the longest common subsequence of left[i..] and right[j..].
  const lengths = new Uint32Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      const below = lengths[(i + 1) * width + j];
      const beside = lengths[i * width + j + 1];
      lengths[i * width + j] = left[i] === right[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(below, beside);
    }
  }
  const runs = [];
  let i = 0;
  let j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) {
      runs.push({ kind: "same", text: left[i] });
      i += 1;
      j += 1;
    } else if (j >= right.length || (i < left.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) {
      runs.push({ kind: "left", text: left[i] });
      i += 1;
    } else {
      runs.push({ kind: "right", text: right[j] });
      j += 1;
    }
  }
  return runs;
}

function merge(runs) {
  const merged = [];
  for (const { kind, text } of runs) {
    if (text === "") continue;
    if (merged.at(-1)?.kind === kind) merged.at(-1).text += text;
    else merged.push({ kind, text });
  }
  return merged;
}
