// Buttons that copy a text.

import { announce, icon, make } from "./dom.js";

const SHOWN_MS = 1500;

/**
 * @param {() => string} text
 * @param {{of: string, selects: Element}} options `of` says what is copied; `selects` is selected for
 *   Ctrl-C where the browser gives no clipboard, as without https
 */
export function copyButton(text, { of, selects }) {
  const label = make("span", {}, "Copy");
  const button = make(
    "button",
    { type: "button", className: "copy quiet", title: `Copy the ${of}`, onclick: copy },
    icon("copy"),
    label,
  );

  async function copy() {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      getSelection().selectAllChildren(selects);
      label.textContent = "Selected";
      return;
    }
    button.firstChild.replaceWith(icon("check"));
    label.textContent = "Copied";
    announce("Copied");
    setTimeout(() => {
      button.firstChild.replaceWith(icon("copy"));
      label.textContent = "Copy";
    }, SHOWN_MS);
  }
  return button;
}
