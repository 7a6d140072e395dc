// Draws an answer's Markdown while it streams: complete blocks once, the last block again and again.

import { ABOVE, elementsOf } from "./elements.js";
import { parse } from "./parser.js";

// After a drawing, the next one waits REST times as long as the drawing took.
const REST = 4;

export class StreamedMarkdown {
  #element;
  #text = "";
  /** The start of the text that the next draw replaces, and the nodes that show it. */
  #settled = 0;
  #live = [];
  #env = {};
  #outline = { level: ABOVE };
  #frame = 0;
  #notBefore = 0;

  /** @param {HTMLElement} element what it fills */
  constructor(element) {
    this.#element = element;
  }

  /**
   * Draws soon: at most once a frame, and seldomer where drawing is slow.
   * @param {(draw: () => void) => void} around calls what it gets, to see the page before and after
   */
  update(text, around = (draw) => draw()) {
    this.#text = text;
    this.#frame ||= requestAnimationFrame(() => this.#onFrame(around));
  }

  /** Draws the whole text now. */
  finish(text) {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (!text.startsWith(this.#text)) this.#begin();
    this.#text = text;
    this.#draw();
    if (!this.#env.references) return;
    // A link may be defined below the text that names it.
    this.#begin();
    this.#draw();
  }

  #onFrame(around) {
    const start = performance.now();
    if (start < this.#notBefore) {
      this.#frame = requestAnimationFrame(() => this.#onFrame(around));
      return;
    }
    this.#frame = 0;
    around(() => this.#draw());
    const end = performance.now();
    this.#notBefore = end + REST * (end - start);
  }

  #begin() {
    this.#settled = 0;
    this.#live = [];
    this.#env = {};
    this.#outline = { level: ABOVE };
    this.#element.replaceChildren();
  }

  #draw() {
    const source = this.#text.slice(this.#settled);
    const tokens = parse(source, this.#env);
    const { token, offset } = lastBlock(source, tokens);
    for (const node of this.#live) node.remove();
    this.#element.append(elementsOf(tokens.slice(0, token), this.#outline));
    const live = elementsOf(tokens.slice(token), { ...this.#outline });
    this.#live = [...live.childNodes];
    this.#element.append(live);
    this.#settled += offset;
  }
}

/**
 * Where the last block begins, if nothing that is still to come can change what stands before it: it
 * follows an empty line, and its own first line is whole.
 */
function lastBlock(source, tokens) {
  const token = tokens.findLastIndex(({ level, nesting, map }) => level === 0 && nesting >= 0 && map);
  const none = { token: 0, offset: 0 };
  if (token <= 0) return none;
  const lines = source.split("\n");
  const first = tokens[token].map[0];
  if (lines[first - 1]?.trim() || first >= lines.length - 1) return none;
  const offset = lines.slice(0, first).reduce((sum, line) => sum + line.length + 1, 0);
  return { token, offset };
}
