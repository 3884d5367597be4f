/** Hands the microphone's samples to the page, in batches: a message for each 128 samples would be 375 a second. */

const BATCH = 2048;

/** Collects mono samples. */
class SampleCollector extends AudioWorkletProcessor {
  #batch = new Float32Array(BATCH);
  #filled = 0;

  /**
   * @param {Float32Array[][]} inputs - 128 samples of each channel of each input.
   * @returns {boolean} true: keep calling.
   */
  process(inputs) {
    const samples = inputs[0][0];
    if (samples === undefined) return true; // the microphone has not begun
    this.#batch.set(samples, this.#filled);
    this.#filled += samples.length;
    if (this.#filled === BATCH) {
      this.port.postMessage(this.#batch, [this.#batch.buffer]);
      this.#batch = new Float32Array(BATCH);
      this.#filled = 0;
    }
    return true;
  }
}

registerProcessor("sample-collector", SampleCollector);
