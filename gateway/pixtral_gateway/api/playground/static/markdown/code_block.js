// A block of code: its language, a button to copy it, and the code in colours.

import { copyButton } from "../copy.js";
import { make } from "../dom.js";
import { highlight } from "./highlighter.js";

/**
 * @param {string} text
 * @param {string} info the text after the fence, which begins with the language
 */
export function codeBlock(text, info) {
  const language = info.trim().split(/\s+/, 1)[0];
  const code = make("code", {}, text.replace(/\n$/, ""));
  highlight(code, language);
  const label = language ? `Code in ${language}` : "Code";
  return make(
    "div",
    { className: "code-block" },
    make(
      "div",
      { className: "head" },
      make("span", { className: "language" }, language || "text"),
      copyButton(() => code.textContent, { of: "code", selects: code }),
    ),
    make("pre", { tabIndex: 0, role: "group", "aria-label": label }, code),
  );
}
