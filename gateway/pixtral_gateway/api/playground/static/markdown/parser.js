// Markdown as tokens, with the mathematics of LaTeX among them.

import MarkdownIt from "../vendor/markdown-it/markdown-it.js";

const LINKED = /^(https?:\/\/|mailto:)/i;

/** Raw HTML stays text. A link leads to a web page or an address for mail, else it stays text, too. */
const parser = new MarkdownIt({ html: false, linkify: true });
parser.validateLink = (url) => LINKED.test(url);
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
parser.inline.ruler.before("escape", "math", inlineMath);
parser.block.ruler.before("fence", "math", blockMath, {
  alt: ["paragraph", "reference", "blockquote", "list"],
});

/**
 * @param {string} source
 * @param {object} env keeps the definitions of links from one part of a text to the next
 */
export function parse(source, env) {
  return parser.parse(source, env);
}

const INLINE = [
  { open: "$$", close: "$$", isDisplay: true },
  { open: "\\[", close: "\\]", isDisplay: true },
  { open: "\\(", close: "\\)", isDisplay: false },
  { open: "$", close: "$", isDisplay: false },
];

function inlineMath(state, silent) {
  const { src, pos } = state;
  const kind = INLINE.find(({ open }) => src.startsWith(open, pos));
  if (!kind) return false;
  const from = pos + kind.open.length;
  const to = closing(src, kind.close, from, state.posMax);
  if (to < 0) return false;
  const tex = src.slice(from, to);
  if (!tex.trim() || (kind.open === "$" && !isMathInDollars(src, from, to))) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = tex;
    token.meta = kind;
  }
  state.pos = to + kind.close.length;
  return true;
}

function closing(text, mark, from, end) {
  for (let at = text.indexOf(mark, from); at >= 0 && at < end; at = text.indexOf(mark, at + 1)) {
    if (mark[0] === "\\" || !isEscaped(text, at)) return at;
  }
  return -1;
}

function isEscaped(text, at) {
  let slashes = 0;
  while (text[at - 1 - slashes] === "\\") slashes++;
  return slashes % 2 === 1;
}

/** Not "$5 and $6": no space inside the dollars, no digit after them. */
function isMathInDollars(text, from, to) {
  return !/\s/.test(text[from]) && !/\s/.test(text[to - 1]) && !/\d/.test(text[to + 1] ?? "");
}

function blockMath(state, firstLine, endLine, silent) {
  const line = (number) =>
    state.src.slice(state.bMarks[number] + state.tShift[number], state.eMarks[number]);
  const first = line(firstLine);
  const kind = INLINE.find(({ open, isDisplay }) => isDisplay && first.startsWith(open));
  if (!kind) return false;
  const lines = [];
  for (let number = firstLine; number < endLine; number++) {
    if (number > firstLine && state.isEmpty(number)) return false;
    if (number > firstLine && state.tShift[number] >= 0 && state.sCount[number] < state.blkIndent) {
      return false;
    }
    const text = number === firstLine ? first.slice(kind.open.length) : line(number);
    const isLast = text.trimEnd().endsWith(kind.close);
    lines.push(isLast ? text.trimEnd().slice(0, -kind.close.length) : text);
    if (!isLast) continue;
    const tex = lines.join("\n");
    if (!tex.trim() || tex.includes(kind.close)) return false;
    if (silent) return true;
    const token = state.push("math", "", 0);
    token.block = true;
    token.content = tex;
    token.meta = kind;
    token.map = [firstLine, number + 1];
    state.line = number + 1;
    return true;
  }
  return false;
}
