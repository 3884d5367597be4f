/**
 * Pictures on their way to the server: read once, turned upright by the browser, made smaller where the model
 * could not use the pixels anyway and the request would be refused for its size.
 */

const MAX_SIDE = 2048; // pixels; nine slices of 448 and an overview see less
const MAX_BYTES = 4 * 2 ** 20; // of one picture
const JPEG_QUALITY = 0.9;
const SENDABLE = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);

/**
 * Read a picture.
 * @param {Blob} file - dropped, pasted or chosen.
 * @returns {Promise<{blob: Blob, width: number, height: number, shrunkFrom: ?string, isCompressed: boolean}>} what to
 *   send; `shrunkFrom` is the size it had, where that was changed.
 * @throws {Error} where the browser cannot read it.
 */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  try {
    const { width, height } = bitmap;
    const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
    if (scale === 1 && file.size <= MAX_BYTES && SENDABLE.has(file.type)) {
      return { blob: file, width, height, shrunkFrom: null, isCompressed: false };
    }
    const canvas = draw(bitmap, Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
    const blob = await encode(canvas, file.type);
    return {
      blob,
      width: canvas.width,
      height: canvas.height,
      shrunkFrom: scale < 1 ? `${width}×${height}` : null,
      isCompressed: scale === 1 && file.size > MAX_BYTES,
    };
  } finally {
    bitmap.close();
  }
}

function draw(bitmap, width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

/** PNG stays PNG, whose sharp text JPEG would blur, unless that would be too large. */
async function encode(canvas, type) {
  if (type !== "image/jpeg") {
    const png = await toBlob(canvas, "image/png");
    if (png.size <= MAX_BYTES) return png;
  }
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "destination-over"; // JPEG has no transparency: what shows through is white
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return toBlob(canvas, "image/jpeg", JPEG_QUALITY);
}

function toBlob(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture cannot be encoded"))), type, quality);
  });
}
