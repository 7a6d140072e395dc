// The ways by which a user adds pictures.

import { find } from "./dom.js";

/** Calls `add` with files that were chosen, photographed, pasted or dropped anywhere. */
export function takePictures(add) {
  for (const [buttons, input] of [
    [".choose", find("#files")],
    [".photograph", find("#camera")],
  ]) {
    for (const button of document.querySelectorAll(buttons)) {
      button.addEventListener("click", () => input.click());
    }
    input.addEventListener("change", () => {
      const files = [...input.files];
      // Otherwise the user could not choose the same file again.
      input.value = "";
      add(files);
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    // The clipboard holds cells of a table as a picture, too; the user means the text.
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    add(files);
  });
  let depth = 0;
  const show = (by) => {
    depth = Math.max(0, depth + by);
    document.body.classList.toggle("dropping", depth > 0);
  };
  const ofFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => ofFiles(event) && show(1));
  addEventListener("dragleave", (event) => ofFiles(event) && show(-1));
  addEventListener("dragover", (event) => ofFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!ofFiles(event)) return;
    event.preventDefault();
    show(-depth);
    add([...event.dataTransfer.files]);
  });
}

/** Makes the field as tall as its text. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
