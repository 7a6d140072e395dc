// Makes elements from Markdown's tokens. Parses no markup: each token names the element it becomes.

import { make } from "../dom.js";
import { codeBlock } from "./code_block.js";
import { math } from "./math.js";

const PLAIN = {
  paragraph_open: "p",
  bullet_list_open: "ul",
  list_item_open: "li",
  blockquote_open: "blockquote",
  thead_open: "thead",
  tbody_open: "tbody",
  tr_open: "tr",
  strong_open: "strong",
  em_open: "em",
  s_open: "s",
};
const ALIGNED = /^text-align:(left|center|right)$/;

// The page's own heading above an answer.
export const ABOVE = 2;

/**
 * @param {{level: number}} outline of the heading before; it becomes that of the last heading here
 * @returns {DocumentFragment}
 */
export function elementsOf(tokens, outline = { level: ABOVE }) {
  const root = document.createDocumentFragment();
  const around = [];
  let at = root;
  for (const token of tokens) {
    if (token.hidden) continue;
    if (token.nesting === 1) {
      const { outer, inner } = opened(token, outline);
      at.append(outer);
      around.push(at);
      at = inner;
    } else if (token.nesting === -1) {
      at = around.pop();
    } else {
      at.append(leaf(token));
    }
  }
  return root;
}

function opened(token, outline) {
  const element = container(token, outline);
  if (token.type !== "table_open") return { outer: element, inner: element };
  const properties = { className: "table", tabIndex: 0, role: "group", "aria-label": "Table" };
  return { outer: make("div", properties, element), inner: element };
}

function container(token, outline) {
  const { type } = token;
  if (type in PLAIN) return make(PLAIN[type]);
  if (type === "heading_open") {
    // It looks as the answer says, and is at most one step below the heading before.
    const level = Number(token.tag[1]);
    outline.level = Math.min(6, level + ABOVE, outline.level + 1);
    return make(`h${outline.level}`, { className: `level-${level}` });
  }
  if (type === "ordered_list_open") return make("ol", { start: token.attrGet("start") ?? 1 });
  if (type === "table_open") return make("table");
  if (type === "th_open" || type === "td_open") {
    const cell = make(type.slice(0, 2));
    cell.style.textAlign = ALIGNED.exec(token.attrGet("style") ?? "")?.[1] ?? "";
    return cell;
  }
  if (type === "link_open") return link(token.attrGet("href"));
  return make("span");
}

function leaf(token) {
  switch (token.type) {
    case "inline":
      return elementsOf(token.children);
    case "softbreak":
    case "hardbreak":
      return make("br");
    case "hr":
      return make("hr");
    case "code_inline":
      return make("code", {}, token.content);
    case "fence":
    case "code_block":
      return codeBlock(token.content, token.info ?? "");
    case "math":
      return math(token.content, token.meta);
    case "image":
      return image(token);
    default:
      return document.createTextNode(token.content);
  }
}

/** The link opens in a new tab, and the other site learns nothing about this page. */
function link(href, ...children) {
  const properties = { target: "_blank", rel: "noopener noreferrer", title: href };
  return make("a", { href, ...properties }, ...children);
}

/** The page never loads an image's address: the request would reveal the conversation. */
function image(token) {
  const words = elementsOf(token.children).textContent.trim();
  return link(token.attrGet("src"), `Image: ${words || token.attrGet("src")}`);
}
