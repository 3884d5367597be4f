/** The microphone: samples as they come, and in the end a recording. */

import { fromSamples } from "./sound.js";
import { say } from "./strings.js";

const MAX_SECONDS = 600;

/** One recording. */
export class Recorder {
  #stream = null;
  #context = null;
  #batches = [];
  #numSamples = 0;
  #onPeak;
  #onFull;

  /**
   * @param {(peak: number, seconds: number) => void} onPeak - called for each batch with its loudest sample.
   * @param {() => void} onFull - called when the recording is as long as it may be.
   */
  constructor(onPeak, onFull) {
    this.#onPeak = onPeak;
    this.#onFull = onFull;
  }

  /**
   * Begin. The browser may ask the user first.
   * @throws {Error} in words for the user: no permission, no microphone, no secure address.
   */
  async start() {
    if (!navigator.mediaDevices || !window.isSecureContext) throw new Error(say("microphoneInsecure"));
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    } catch (error) {
      const reasons = { NotAllowedError: "microphoneDenied", NotFoundError: "microphoneMissing" };
      throw new Error(reasons[error.name] ? say(reasons[error.name]) : error.name);
    }
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule(new URL("recorder_worklet.js", import.meta.url));
    const collector = new AudioWorkletNode(this.#context, "sample-collector", { numberOfOutputs: 0 });
    collector.port.onmessage = ({ data }) => this.#take(data);
    this.#context.createMediaStreamSource(this.#stream).connect(collector);
    await this.#context.resume();
  }

  #take(batch) {
    this.#batches.push(batch);
    this.#numSamples += batch.length;
    const seconds = this.#numSamples / this.#context.sampleRate;
    this.#onPeak(
      batch.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0),
      seconds,
    );
    if (seconds >= MAX_SECONDS) this.#onFull();
  }

  /** Let go of the microphone. */
  close() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#context && this.#context.state !== "closed") this.#context.close();
  }

  /**
   * End.
   * @returns {Promise<{blob: Blob, seconds: number, peaks: number[]}>} the recording.
   * @throws {Error} in words for the user, where nothing was recorded.
   */
  async finish() {
    const { sampleRate } = this.#context;
    this.close();
    if (this.#numSamples === 0) throw new Error(say("microphoneEmpty"));
    const waveform = new Float32Array(this.#numSamples);
    let at = 0;
    for (const batch of this.#batches) {
      waveform.set(batch, at);
      at += batch.length;
    }
    return fromSamples(waveform, sampleRate);
  }
}
