// Draws the pages of a PDF as pictures, by pdf.js, which is loaded with the first PDF.

// No Pixtral sees more pixels of a side.
const LONGEST_SIDE = 1540;
const PIXELS_PER_POINT = 150 / 72;
const MOST_PAGES = 8;
const MOST_PIXELS = 1e8;
const JPEG_QUALITY = 0.92;
const VENDOR = new URL("vendor/pdf/", import.meta.url).href;

export const isPdf = ({ name, type }) => type === "application/pdf" || /\.pdf$/i.test(name);

let library = null;

/**
 * The first pages, white where nothing is drawn, as JPEGs.
 * @param {File} file
 * @param {number} most how many pages may become pictures
 * @returns {Promise<{pages: File[], total: number}>}
 * @throws {Error} its message says why a person sees no pages
 */
export async function pagesOf(file, most) {
  let task = null;
  try {
    const { getDocument, VerbosityLevel } = await (library ??= load());
    task = getDocument({
      data: new Uint8Array(await file.arrayBuffer()),
      verbosity: VerbosityLevel.ERRORS,
      maxImageSize: MOST_PIXELS,
      useWasm: false,
      wasmUrl: `${VENDOR}decoders/`,
      disableWorkerRendering: true,
    });
    const pdf = await task.promise;
    const pages = [];
    const last = Math.min(pdf.numPages, MOST_PAGES, most);
    for (let number = 1; number <= last; number += 1) {
      const blob = await drawn(await pdf.getPage(number));
      const name = `${file.name.replace(/\.pdf$/i, "")}, page ${number}.jpg`;
      pages.push(new File([blob], name, { type: blob.type }));
    }
    return { pages, total: pdf.numPages };
  } catch (error) {
    throw new Error(
      error?.name === "PasswordException"
        ? "a PDF with a password: print it to one without"
        : "a PDF that cannot be read",
    );
  } finally {
    await task?.destroy();
  }
}

/**
 * pdf.js works in this thread: to start a worker, the page would have to make a script's address of
 * a text, which its policy forbids. With the worker's module loaded, pdf.js starts none.
 */
async function load() {
  try {
    const [pdf] = await Promise.all([
      import("./vendor/pdf/pdf.js"),
      import("./vendor/pdf/worker.js"),
    ]);
    return pdf;
  } catch (error) {
    // The next PDF tries again.
    library = null;
    throw error;
  }
}

async function drawn(page) {
  const { width, height } = page.getViewport({ scale: 1 });
  const scale = Math.min(PIXELS_PER_POINT, LONGEST_SIDE / Math.max(width, height));
  const viewport = page.getViewport({ scale });
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(viewport.width));
  canvas.height = Math.max(1, Math.floor(viewport.height));
  await page.render({ canvas, viewport, background: "white" }).promise;
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
  if (!blob) throw new Error("not drawn");
  return blob;
}
