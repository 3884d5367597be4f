/**
 * Sound on its way to the server: 16 kHz mono, what the model hears, as WAV with 16 bit.
 *
 *   WAV: "RIFF" size "WAVE" | "fmt " 16, format 1, channels 1, rate, bytes/s, 2, 16 | "data" size, samples
 */

export const SAMPLE_RATE = 16_000;
const MAX_PART_SECONDS = 30; // the model hears no more at once
const SEARCH_SECONDS = 6; // before the end of a part, for a quiet place to cut
const WINDOW = SAMPLE_RATE / 10; // samples a quiet place is measured over
const HEADER_BYTES = 44;
const NUM_PEAKS = 180;
const AS_IT_IS = new Set(["audio/wav", "audio/mpeg"]); // what every OpenAI server takes
const TYPES = {
  wav: "audio/wav",
  mp3: "audio/mpeg",
  flac: "audio/flac",
  ogg: "audio/ogg",
  oga: "audio/ogg",
  opus: "audio/ogg",
  m4a: "audio/mp4",
  mp4: "audio/mp4",
  aac: "audio/aac",
  webm: "audio/webm",
};

/**
 * @param {File} file - dropped or chosen.
 * @returns {?string} the type of its sound; null where it is none.
 */
export function soundType(file) {
  const ending = file.name?.split(".").pop().toLowerCase();
  if (TYPES[ending]) return TYPES[ending];
  const alias = {
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/mp3": "audio/mpeg",
    "audio/x-m4a": "audio/mp4",
  };
  const type = (alias[file.type] ?? file.type).split(";")[0];
  return type.startsWith("audio/") ? type : null;
}

/**
 * Read a sound file.
 * @param {File} file - dropped or chosen.
 * @returns {Promise<{blob: Blob, seconds: ?number, peaks: ?number[]}>} what to send; without length and peaks where
 *   only the server can decode the format.
 */
export async function readSound(file) {
  const type = soundType(file);
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    return { blob: new Blob([file], { type }), seconds: null, peaks: null };
  }
  const waveform = toMono(buffer);
  const seconds = waveform.length / SAMPLE_RATE;
  const isKept = AS_IT_IS.has(type) && seconds <= MAX_PART_SECONDS && file.size <= 2 * waveform.length + 4096;
  return { blob: isKept ? new Blob([file], { type }) : wavFile(waveform), seconds, peaks: peaksOf(waveform) };
}

/**
 * Bring recorded samples to the model's rate.
 * @param {Float32Array} waveform - mono samples.
 * @param {number} sampleRate - their rate, in Hz.
 * @returns {Promise<{blob: Blob, seconds: number, peaks: number[]}>} what to send.
 */
export async function fromSamples(waveform, sampleRate) {
  const numSamples = Math.max(1, Math.round((waveform.length * SAMPLE_RATE) / sampleRate));
  const context = new OfflineAudioContext(1, numSamples, SAMPLE_RATE);
  const buffer = context.createBuffer(1, waveform.length, sampleRate);
  buffer.copyToChannel(waveform, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.start();
  const resampled = (await context.startRendering()).getChannelData(0);
  return { blob: wavFile(resampled), seconds: numSamples / SAMPLE_RATE, peaks: peaksOf(resampled) };
}

function toMono(buffer) {
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel += 1) {
    const samples = buffer.getChannelData(channel);
    for (let n = 0; n < mono.length; n += 1) mono[n] += samples[n] / buffer.numberOfChannels;
  }
  return mono;
}

/** @returns {Blob} samples between -1 and 1 as a WAV file. */
function wavFile(waveform) {
  const samples = new Int16Array(waveform.length);
  for (let n = 0; n < waveform.length; n += 1) {
    samples[n] = Math.round(Math.max(-1, Math.min(1, waveform[n])) * 32767);
  }
  return withHeader(new Uint8Array(samples.buffer)); // little-endian, as every browser's machine is
}

function withHeader(bytes) {
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  const write = (at, text) => [...text].forEach((c, n) => header.setUint8(at + n, c.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, HEADER_BYTES - 8 + bytes.byteLength, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, SAMPLE_RATE, true);
  header.setUint32(28, 2 * SAMPLE_RATE, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  write(36, "data");
  header.setUint32(40, bytes.byteLength, true);
  return new Blob([header, bytes], { type: "audio/wav" });
}

/** @returns {number[]} the loudest sample of each of equal spans, between 0 and 1. */
function peaksOf(waveform) {
  const span = Math.max(1, Math.ceil(waveform.length / NUM_PEAKS));
  const peaks = [];
  for (let begin = 0; begin < waveform.length; begin += span) {
    let peak = 0;
    for (let n = begin; n < Math.min(begin + span, waveform.length); n += 1)
      peak = Math.max(peak, Math.abs(waveform[n]));
    peaks.push(Math.round(Math.min(1, peak) * 1000) / 1000);
  }
  return peaks;
}

/**
 * @param {?number} seconds - length of a recording, if known.
 * @returns {boolean} whether it goes to the model in several parts.
 */
export function isLong(seconds) {
  return seconds !== null && seconds > MAX_PART_SECONDS;
}

/**
 * Cut a long recording at quiet places into parts that the model hears at once.
 * @param {Blob} blob - from `readSound` or `fromSamples`.
 * @param {?number} seconds - its length.
 * @returns {Promise<Blob[]>} the parts, or the recording itself where it is short enough. Always the same for the
 *   same recording, so that the server knows the parts again in the next turn.
 */
export async function partsOf(blob, seconds) {
  if (!isLong(seconds)) return [blob];
  const bytes = new Uint8Array(await blob.arrayBuffer()).slice(HEADER_BYTES);
  const samples = new Int16Array(bytes.buffer);
  const parts = [];
  for (let begin = 0; begin < samples.length;) {
    const end = endOfPart(samples, begin);
    parts.push(withHeader(bytes.subarray(2 * begin, 2 * end)));
    begin = end;
  }
  return parts;
}

/** The middle of the quietest window in the last seconds a part may have. */
function endOfPart(samples, begin) {
  const limit = begin + MAX_PART_SECONDS * SAMPLE_RATE;
  if (limit >= samples.length) return samples.length;
  let quietest = Infinity;
  let end = limit;
  for (let at = limit - SEARCH_SECONDS * SAMPLE_RATE; at + WINDOW <= limit; at += WINDOW / 2) {
    let energy = 0;
    for (let n = at; n < at + WINDOW; n += 1) energy += samples[n] * samples[n];
    if (energy < quietest) {
      quietest = energy;
      end = at + WINDOW / 2;
    }
  }
  return end;
}
