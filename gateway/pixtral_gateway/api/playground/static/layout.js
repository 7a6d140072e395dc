// The two sides of the page, which are drawers where it is narrow, and its light or dark look.

import { find } from "./dom.js";
import { ofBrowser } from "./storage.js";

const TOUCH = matchMedia("(pointer: coarse)");
const WIDE = matchMedia("(min-width: 1180px)");
const SIDES = ["history", "settings"];

export function isTouch() {
  return TOUCH.matches;
}

export function startLayout() {
  for (const side of SIDES) {
    find(`#open-${side}`).addEventListener("click", () => toggle(side));
    find(`#${side} .close`).addEventListener("click", () => close(side));
  }
  find("#scrim").addEventListener("click", closeDrawers);
  WIDE.addEventListener("change", closeDrawers);
  if (WIDE.matches && ofBrowser.get("history") === "open") show("history", true);
  // On a phone nobody drags files.
  if (TOUCH.matches) find("#welcome h2").textContent = "Show a picture, ask, and see where the time goes";
  const look = find("#look");
  look.value = ofBrowser.get("look") ?? "";
  setLook(look.value);
  look.addEventListener("change", () => {
    setLook(look.value);
    ofBrowser.set("look", look.value);
  });
}

/** Closes a drawer, if one covers the page; says whether. */
export function closeDrawers() {
  const open = SIDES.filter((side) => !find(`#${side}`).hidden && !WIDE.matches);
  open.forEach(close);
  find("#scrim").hidden = true;
  find("#page").inert = false;
  return open.length > 0;
}

function toggle(side) {
  if (find(`#${side}`).hidden) show(side, true);
  else close(side);
}

function close(side) {
  show(side, false);
  find(`#open-${side}`).focus();
}

function show(side, isOpen) {
  find(`#${side}`).hidden = !isOpen;
  find(`#open-${side}`).setAttribute("aria-expanded", String(isOpen));
  if (WIDE.matches) {
    if (side === "history") ofBrowser.set("history", isOpen ? "open" : "closed");
  } else {
    find("#scrim").hidden = !isOpen;
    find("#page").inert = isOpen;
  }
  if (isOpen && document.readyState === "complete") find(`#${side} .first`).focus();
}

function setLook(look) {
  if (look) document.documentElement.dataset.theme = look;
  else delete document.documentElement.dataset.theme;
}
