// Shows a picture in the size of the window, and at a click in its own size.

import { find, make } from "./dom.js";

/** A button that shows the picture, and opens it large. */
export function zoomable(picture) {
  return make(
    "button",
    {
      type: "button",
      className: "zoom",
      title: "See it large",
      "aria-label": `See ${picture.name} large`,
      onclick: () => open(picture),
    },
    make("img", { src: picture.url, alt: "" }),
  );
}

function open(picture) {
  const dialog = find("#zoom");
  const image = make("img", { src: picture.url, alt: picture.name });
  const whole = make("button", { type: "button", className: "whole", "aria-pressed": "false" }, image);
  whole.setAttribute("aria-label", `${picture.name}: show each pixel`);
  whole.addEventListener("click", () => {
    const isLarge = whole.getAttribute("aria-pressed") === "false";
    whole.setAttribute("aria-pressed", String(isLarge));
  });
  find("#zoom .name").textContent = picture.name;
  find("#zoom .stage").replaceChildren(whole);
  dialog.showModal();
}

export function startZoom() {
  const dialog = find("#zoom");
  find("#zoom .close").addEventListener("click", () => dialog.close());
  // A click beside the picture closes the window, too.
  find("#zoom .stage").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) dialog.close();
  });
  dialog.addEventListener("close", () => find("#zoom .stage").replaceChildren());
}
