// Redraws files of kinds that the gateway refuses, if this browser can read them.

import { isPdf, pagesOf } from "./pdf.js";

export const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LONGEST_SIDE = 4096;
const HEIC_PROBLEM = "HEIC, which this browser cannot read: convert it to JPEG";
const JPEG_QUALITY = 0.92;
// These kinds are drawings with sharp edges; the others are photographs.
const DRAWN = ["image/svg+xml", "image/bmp", "image/x-icon", "image/vnd.microsoft.icon"];

/**
 * HEIC in Safari, SVG, AVIF, BMP and ICO in all: as PNG or JPEG. The pages of a PDF are a picture
 * each. A file that is no picture, or none that this browser can read, comes back as it is.
 * @param {File} file
 * @param {number} most how many pages of a PDF may become pictures
 * @returns {Promise<{file: File, problem?: string, note?: string}[]>} with what a person should know
 */
export async function converted(file, most) {
  if (isPdf(file)) return await pagesWithNote(file, most);
  const redrawnFile = await redrawnIfNeeded(file);
  const isUnread = redrawnFile === file && isHeic(file);
  return [{ file: redrawnFile, problem: isUnread ? HEIC_PROBLEM : undefined }];
}

async function pagesWithNote(file, most) {
  try {
    const { pages, total } = await pagesOf(file, most);
    const last = pages.length - 1;
    const note = pages.length < total ? `of ${total} pages; the others are left out` : undefined;
    return pages.map((page, i) => ({ file: page, note: i === last ? note : undefined }));
  } catch (error) {
    return [{ file, problem: error.message }];
  }
}

const isHeic = ({ name, type }) => /^image\/hei[cf]/.test(type) || /\.hei[cf]$/i.test(name);

async function redrawnIfNeeded(file) {
  const isPicture = file.type.startsWith("image/") || isHeic(file);
  if (KINDS.includes(file.type) || !isPicture) return file;
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    return await redrawn(image, file);
  } catch {
    return file;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function redrawn(image, { name, type }) {
  const isDrawn = DRAWN.includes(type);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  // A JPEG cannot be transparent, and a model sees transparent pixels as black.
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const [kind, suffix] = isDrawn ? ["image/png", "png"] : ["image/jpeg", "jpg"];
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, kind, JPEG_QUALITY));
  return new File([blob], `${name.replace(/\.\w+$/, "")}.${suffix}`, { type: kind });
}
