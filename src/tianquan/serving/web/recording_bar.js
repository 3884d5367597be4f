/** What one sees while recording: the sound as it comes, the time, and the two ways to end. */

import { element, iconButton } from "./element.js";
import { announce, notice } from "./notices.js";
import { Recorder } from "./recorder.js";
import { clock, say } from "./strings.js";
import { drawBars } from "./waveform.js";

const NUM_BARS = 220; // the newest; the drawing shows as many as fit

/** A bar above the text while the microphone is on. */
export class RecordingBar {
  #recorder = null;
  #peaks = [];
  #onSound;
  #onEnd;

  /**
   * @param {(sound: {blob: Blob, seconds: number, peaks: number[]}) => void} onSound - takes the recording.
   * @param {() => void} onEnd - called when the bar goes away.
   */
  constructor(onSound, onEnd) {
    this.#onSound = onSound;
    this.#onEnd = onEnd;
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.time = element("span", { class: "sound-time", role: "timer" });
    this.discard = iconButton("remove", "", () => this.cancel());
    this.keep = iconButton("check", "", () => this.finish(), "quiet keep");
    this.node = element(
      "div",
      { class: "recording", role: "group", hidden: true },
      this.discard,
      element("span", { class: "recording-light" }),
      element("div", { class: "wave" }, this.canvas),
      this.time,
      this.keep,
    );
  }

  /** @returns {boolean} whether the microphone is on. */
  get isActive() {
    return this.#recorder !== null;
  }

  /** Show the strings in the page's language. */
  useLanguage() {
    this.node.setAttribute("aria-label", say("recording"));
    for (const [button, key] of [
      [this.discard, "cancelRecording"],
      [this.keep, "finishRecording"],
    ]) {
      button.setAttribute("aria-label", say(key));
      button.title = say(key);
    }
  }

  /** Begin. */
  async start() {
    if (this.isActive) return;
    const recorder = new Recorder(
      (peak, seconds) => this.#show(peak, seconds),
      () => {
        notice(say("soundCut", { duration: this.time.textContent }));
        this.finish();
      },
    );
    this.#recorder = recorder;
    this.#peaks = [];
    this.time.textContent = clock(0);
    try {
      await recorder.start();
    } catch (error) {
      recorder.close();
      this.#recorder = null;
      notice(say("errorMicrophone", { reason: error.message }));
      return;
    }
    if (this.#recorder !== recorder) {
      // given up while the browser was asking for permission
      recorder.close();
      return;
    }
    this.node.hidden = false;
    this.keep.focus();
    announce(say("recording"));
  }

  /** End, and hand the recording over. */
  async finish() {
    const recorder = this.#end();
    if (recorder === null) return;
    try {
      this.#onSound(await recorder.finish());
    } catch (error) {
      notice(say("errorMicrophone", { reason: error.message }));
    }
  }

  /** End, and forget the recording. */
  cancel() {
    this.#end()?.close();
    this.#onEnd();
  }

  #end() {
    const recorder = this.#recorder;
    this.#recorder = null;
    this.node.hidden = true;
    return recorder;
  }

  #show(peak, seconds) {
    this.#peaks.push(peak);
    this.time.textContent = clock(seconds);
    if (this.canvas.clientWidth === 0) return; // samples come a moment before the bar is seen, and after it
    const numShown = Math.min(NUM_BARS, Math.floor(this.canvas.clientWidth / 3.5));
    const newest = this.#peaks.slice(-numShown);
    drawBars(this.canvas, [...new Array(numShown - newest.length).fill(0), ...newest], 1);
  }
}
