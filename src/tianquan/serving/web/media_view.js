/** Pictures, recordings and videos as the page shows them, in the composer and in messages. */

import { describeError } from "./api.js";
import { element, iconButton } from "./element.js";
import { notice } from "./notices.js";
import { isLong } from "./sound.js";
import { say } from "./strings.js";
import { SoundPlayer } from "./waveform.js";

/**
 * Show a picture as a thumbnail that opens in full.
 * @param {import("./conversation.js").Medium} medium - the picture.
 * @param {Blob} blob - its bytes.
 * @returns {HTMLElement} the thumbnail.
 */
export function pictureThumbnail(medium, blob) {
  const url = URL.createObjectURL(blob);
  const label = say("openPicture", { name: medium.name });
  const image = element("img", {
    src: url,
    alt: medium.name,
    width: medium.width,
    height: medium.height,
    draggable: "false",
  });
  return element(
    "button",
    {
      type: "button",
      class: "thumbnail",
      "aria-label": label,
      title: medium.name,
      onclick: () => openPicture(url, medium.name),
    },
    image,
  );
}

/**
 * @param {File} file - dropped, pasted or chosen.
 * @returns {boolean} whether it is a video, by its type or, where the browser knows none, by its name.
 */
export function isVideo(file) {
  return file.type.startsWith("video/") || (file.type === "" && /\.(mp4|mov|mkv|ts)$/i.test(file.name ?? ""));
}

/**
 * Show a video with the browser's own controls; one it cannot play is still sent.
 * @param {import("./conversation.js").Medium} medium - the video.
 * @param {Blob} blob - its bytes.
 * @returns {HTMLElement} the video.
 */
export function videoBlock(medium, blob) {
  return element("video", {
    class: "video-block",
    src: URL.createObjectURL(blob),
    title: medium.name,
    "aria-label": medium.name,
    controls: "",
    preload: "metadata",
  });
}

function openPicture(url, name) {
  const close = () => dialog.close();
  const dialog = element("dialog", {
    class: "picture-dialog",
    "aria-label": name,
    onclick: close,
    onclose: () => dialog.remove(),
  });
  dialog.append(element("img", { src: url, alt: name }), iconButton("close", say("close"), close));
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * Show a recording: its waveform, and its words once asked for.
 * @param {import("./conversation.js").Medium} medium - the recording; gets its transcript.
 * @param {Blob} blob - its bytes.
 * @param {(blob: Blob, name: string) => Promise<string>} transcribe - asks the server.
 * @param {(medium: object) => void} onTranscript - called with the medium when it has one.
 * @returns {HTMLElement} the recording.
 */
export function soundBlock(medium, blob, transcribe, onTranscript) {
  const words = element("p", { class: "transcript", "aria-label": say("transcript") });
  const button = element("button", { type: "button", class: "text-button" }, say("transcribe"));
  const notes = [medium.peaks ? null : say("noWaveform"), isLong(medium.seconds ?? null) ? say("soundParts") : null];
  const show = () => {
    const isThere = medium.transcript !== undefined;
    words.textContent = isThere ? medium.transcript || say("emptyTranscript") : "";
    words.hidden = !isThere;
    button.hidden = isThere;
  };
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = say("transcribing");
    try {
      medium.transcript = (await transcribe(blob, fileName(medium, blob))).trim();
      onTranscript(medium);
    } catch (error) {
      notice([describeError(error), error.detail].filter(Boolean).join(" "));
    }
    button.disabled = false;
    button.textContent = say("transcribe");
    show();
  });
  show();
  const foot = element(
    "div",
    { class: "sound-foot" },
    ...notes.map((note) => note && element("span", {}, note)),
    button,
  );
  return element("div", { class: "sound-block" }, new SoundPlayer(medium, blob).node, foot, words);
}

/** A converted recording is a WAV file whatever it was before. */
function fileName({ name }, blob) {
  const ending = { "audio/wav": "wav", "audio/mpeg": "mp3" }[blob.type];
  return ending === undefined ? name : `${name.replace(/\.\w+$/, "")}.${ending}`;
}
