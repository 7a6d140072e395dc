// Shows mathematics by KaTeX, which it loads at the first use. Until then it shows the source of the
// LaTeX, and it keeps showing the source of wrong LaTeX.

import { make } from "../dom.js";

/** Nothing of an answer becomes a link, an image or a style, and no size grows over the page. */
const OPTIONS = { trust: false, maxSize: 20, maxExpand: 500, strict: "ignore", throwOnError: true };
const LONGEST = 5000;

let loaded = null;
let loading = null;

/**
 * @param {string} tex
 * @param {{open: string, close: string, isDisplay: boolean}} kind
 */
export function math(tex, { open, close, isDisplay }) {
  const source = `${open}${tex}${close}`;
  const element = make("span", { className: isDisplay ? "math display" : "math" }, source);
  if (isDisplay) Object.assign(element, { tabIndex: 0, role: "group", ariaLabel: "Formula" });
  if (tex.length > LONGEST) return element;
  if (loaded) draw(element, tex, isDisplay);
  else load().then(() => draw(element, tex, isDisplay)).catch(() => {});
  return element;
}

function load() {
  loading ??= import("../vendor/katex/katex.js").then(() => {
    loaded = globalThis.katex;
  });
  return loading;
}

function draw(element, tex, isDisplay) {
  const drawn = document.createElement("span");
  try {
    loaded.render(tex.trim(), drawn, { ...OPTIONS, displayMode: isDisplay });
  } catch {
    element.classList.add("source");
    return;
  }
  element.replaceChildren(...drawn.childNodes);
}
