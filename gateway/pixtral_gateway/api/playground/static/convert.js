// Redraws pictures of kinds that the gateway refuses, if this browser can read them.

export const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LONGEST_SIDE = 4096;
const JPEG_QUALITY = 0.92;
// These kinds are drawings with sharp edges; the others are photographs.
const DRAWN = ["image/svg+xml", "image/bmp", "image/x-icon", "image/vnd.microsoft.icon"];

/**
 * HEIC in Safari, SVG, AVIF, BMP and ICO in all: as PNG or JPEG. A file that is no picture, or none
 * that this browser can read, comes back as it is.
 * @param {File} file
 * @returns {Promise<File>}
 */
export async function converted(file) {
  const isPicture = file.type.startsWith("image/") || /\.hei[cf]$/i.test(file.name);
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
