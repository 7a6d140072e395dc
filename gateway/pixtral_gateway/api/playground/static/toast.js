// A line at the foot of the page that reports an action and can undo it.

import { announce, find } from "./dom.js";

const SHOWN_MS = 12_000;
let timer = 0;
let undo = () => {};

/** It stays while the pointer or the focus is on it. */
export function offerUndo(text, onUndo) {
  undo = onUndo;
  find("#toast .text").textContent = text;
  find("#toast").hidden = false;
  announce(text);
  wait();
}

export function hideToast() {
  clearTimeout(timer);
  find("#toast").hidden = true;
}

function wait() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (find("#toast").matches(":hover, :focus-within")) wait();
    else hideToast();
  }, SHOWN_MS);
}

export function startToast() {
  find("#toast button").addEventListener("click", () => {
    hideToast();
    undo();
  });
}
