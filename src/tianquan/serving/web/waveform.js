/** Recordings one can see: a drawing of the loudness, with a button to play and a place to seek. */

import { element, icon } from "./element.js";
import { clock, say } from "./strings.js";

const BAR = 2; // pixels
const GAP = 1.5;

/**
 * Draw peaks as bars, as many as fit.
 * @param {HTMLCanvasElement} canvas - laid out by the style sheet.
 * @param {number[]} peaks - between 0 and 1.
 * @param {number} share - of the bars that are drawn as played.
 */
export function drawBars(canvas, peaks, share) {
  const ratio = window.devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (width === 0) return;
  Object.assign(canvas, { width: width * ratio, height: height * ratio });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const numBars = Math.max(1, Math.floor(width / (BAR + GAP)));
  const loudest = Math.max(0.05, ...peaks); // quiet recordings are drawn louder; silence is not
  for (let bar = 0; bar < numBars; bar += 1) {
    const [from, to] = [(bar * peaks.length) / numBars, ((bar + 1) * peaks.length) / numBars];
    let peak = 0;
    for (let n = Math.floor(from); n < Math.max(Math.floor(from) + 1, to) && n < peaks.length; n += 1)
      peak = Math.max(peak, peaks[n]);
    const tall = Math.max(2, (peak / loudest) * height);
    context.fillStyle = bar / numBars < share ? style.fill : style.color;
    context.beginPath();
    context.roundRect(bar * (BAR + GAP), (height - tall) / 2, BAR, tall, 1);
    context.fill();
  }
}

/** Draw every recording again, in the colours of another theme. */
export function redrawAll() {
  document.querySelectorAll(".wave canvas").forEach((canvas) => canvas.dispatchEvent(new Event("redraw")));
}

/** Only one recording plays at a time. */
let playing = null;

/** A recording with its controls. */
export class SoundPlayer {
  #audio = new Audio();
  #canvas = element("canvas", { "aria-hidden": "true" });
  #medium;
  #blob;
  #button;
  #range;
  #time;

  /**
   * @param {{name: string, seconds: ?number, peaks: ?number[]}} medium - what is shown.
   * @param {Blob} blob - what is played.
   */
  constructor(medium, blob) {
    this.#medium = medium;
    this.#audio.preload = "none";
    this.#blob = blob;
    this.#button = element("button", { type: "button", class: "quiet play", onclick: () => this.#toggle() });
    this.#range = element("input", {
      type: "range",
      min: "0",
      max: "1000",
      value: "0",
      step: "5",
      "aria-label": say("position", { name: medium.name }),
    });
    this.#range.addEventListener("input", () => this.#seek());
    this.#time = element("span", { class: "sound-time" });
    this.node = element(
      "div",
      { class: "sound", role: "group", "aria-label": medium.name },
      this.#button,
      element("div", { class: "wave" }, this.#canvas, this.#range),
      this.#time,
    );
    for (const event of ["play", "pause", "ended"]) this.#audio.addEventListener(event, () => this.#show());
    this.#audio.addEventListener("error", () => {
      this.#button.disabled = true;
    });
    new ResizeObserver(() => this.#draw()).observe(this.#canvas);
    this.#canvas.addEventListener("redraw", () => this.#draw());
    this.#show();
  }

  #toggle() {
    if (!this.#audio.paused) {
      this.#audio.pause();
      return;
    }
    if (!this.#audio.src) this.#audio.src = URL.createObjectURL(this.#blob);
    playing?.pause();
    playing = this.#audio;
    this.#audio.play().catch(() => {
      this.#button.disabled = true;
    });
  }

  #seek() {
    if (!this.#audio.src) this.#audio.src = URL.createObjectURL(this.#blob);
    this.#audio.currentTime = (this.#range.value / 1000) * (this.#medium.seconds ?? 0);
    this.#draw();
  }

  #show() {
    const isPlaying = !this.#audio.paused && !this.#audio.ended;
    const label = say(isPlaying ? "pauseSound" : "playSound", { name: this.#medium.name });
    this.#button.replaceChildren(icon(isPlaying ? "pause" : "play"));
    this.#button.setAttribute("aria-label", label);
    this.#button.title = label;
    if (this.#audio.ended) this.#audio.currentTime = 0;
    this.#draw();
    if (isPlaying) requestAnimationFrame(() => this.#follow());
  }

  #follow() {
    this.#draw();
    if (!this.#audio.paused) requestAnimationFrame(() => this.#follow());
  }

  #draw() {
    const { seconds, peaks } = this.#medium;
    const at = this.#audio.currentTime;
    const share = seconds ? at / seconds : 0;
    this.#range.value = Math.round(share * 1000);
    this.#range.setAttribute("aria-valuetext", clock(at));
    this.#time.textContent = seconds === null ? "" : clock(at > 0 ? at : Math.max(seconds, 1));
    drawBars(this.#canvas, peaks ?? [], share);
  }
}
