// Colours code by highlight.js. Loads a language when an answer first uses it.

import highlighter from "../vendor/highlight/core.js";
import { make } from "../dom.js";

const LANGUAGES = {
  bash: ["sh", "shell", "zsh", "console"],
  c: ["h"],
  cpp: ["c++", "cc", "hpp", "cuda"],
  csharp: ["c#", "cs"],
  css: [],
  diff: ["patch"],
  dockerfile: ["docker"],
  go: ["golang"],
  ini: ["toml"],
  java: [],
  javascript: ["js", "jsx", "mjs"],
  json: ["jsonc"],
  kotlin: ["kt"],
  latex: ["tex"],
  lua: [],
  markdown: ["md"],
  php: [],
  python: ["py", "python3"],
  ruby: ["rb"],
  rust: ["rs"],
  sql: [],
  swift: [],
  typescript: ["ts", "tsx"],
  xml: ["html", "svg"],
  yaml: ["yml"],
};
const BY_NAME = new Map(
  Object.entries(LANGUAGES).flatMap(([name, others]) => [name, ...others].map((each) => [each, name])),
);
// In longer code, colours cost more than they help.
const LONGEST = 50_000;
const SCOPE = /^[a-z_.-]+$/;

/** Colours what `code` shows, now or once the language is there; leaves it where there is none. */
export function highlight(code, language) {
  const name = BY_NAME.get(language.toLowerCase());
  const text = code.textContent;
  if (!name || text.length > LONGEST) return;
  if (highlighter.getLanguage(name)) code.replaceChildren(...coloured(text, name));
  else load(name).then(() => code.replaceChildren(...coloured(text, name))).catch(() => {});
}

const loading = new Map();

function load(name) {
  if (!loading.has(name)) {
    const file = import(`../vendor/highlight/languages/${name}.js`);
    loading.set(name, file.then((module) => highlighter.registerLanguage(name, module.default)));
  }
  return loading.get(name);
}

/** From the tree that highlight.js makes its HTML of, without the HTML. */
function coloured(text, name) {
  const { _emitter: tree } = highlighter.highlight(text, { language: name, ignoreIllegals: true });
  return tree.rootNode.children.map(node);
}

function node(each) {
  if (typeof each === "string") return document.createTextNode(each);
  const scope = each.scope ?? "";
  const className = SCOPE.test(scope) ? `hl-${scope.split(".")[0]}` : "";
  return make("span", { className }, ...each.children.map(node));
}
