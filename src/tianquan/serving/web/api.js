/**
 * The server's OpenAI routes. Addresses are relative to the page, so that a reverse proxy may move both.
 */

import { readEvents } from "./event_stream.js";
import { say } from "./strings.js";

/** A request that failed, with what the server said about it. */
export class ApiError extends Error {
  /**
   * @param {number} status - of HTTP; 0 where no answer came.
   * @param {string} [detail] - the server's own words.
   * @param {?number} [retryAfterS] - when to try again.
   */
  constructor(status, detail = "", retryAfterS = null) {
    super(detail || `HTTP ${status}`);
    Object.assign(this, { status, detail, retryAfterS });
  }
}

/**
 * Say in the page's language what an error means.
 * @param {{status: number, retryAfterS?: ?number}} error - the error, live or as kept in a conversation.
 * @returns {string} one sentence.
 */
export function describeError(error) {
  const { status, retryAfterS } = error;
  if (status === 429) return retryAfterS ? say("errorBusyFor", { seconds: retryAfterS }) : say("errorBusy");
  const known = {
    0: "errorNetwork",
    [-1]: "errorBroken",
    [UNSENT]: "errorUnsent",
    401: "errorKey",
    404: "errorModel",
    413: "errorLarge",
    503: "errorLoading",
  };
  return say(known[status] ?? (status >= 500 ? "errorServer" : "errorRequest"));
}

/** In place of a status: the browser could not make the request. */
export const UNSENT = -2;

/** Requests to one server. */
export class Api {
  #keeper;
  #askForKey;
  #asking = null;

  /**
   * @param {import("./preferences.js").KeyKeeper} keeper - holds the key.
   * @param {(wasRejected: boolean) => Promise<?string>} askForKey - asks the user; null where they decline.
   */
  constructor(keeper, askForKey) {
    this.#keeper = keeper;
    this.#askForKey = askForKey;
  }

  /** @returns {Promise<"ready"|"loading"|"unreachable">} the state of the server. */
  async health() {
    try {
      const response = await fetch("health", { cache: "no-store" });
      return response.ok ? "ready" : "loading";
    } catch {
      return "unreachable";
    }
  }

  /** @returns {Promise<Array<{id: string, maxModelLen: ?number}>>} the models, the first being the base model. */
  async models() {
    const response = await this.#fetch("v1/models", {});
    const { data } = await response.json();
    return data.map((model) => ({
      id: model.id,
      maxModelLen: model.max_model_len ?? model.max_length ?? model.meta?.n_ctx_train ?? null,
    }));
  }

  /**
   * Ask for an answer and read it as it comes.
   * @param {object} body - of /v1/chat/completions, without the stream fields.
   * @param {AbortSignal} signal - stops the answer.
   * @returns {AsyncGenerator<object>} the chunks.
   * @throws {ApiError} on any failure but the abort.
   */
  async *streamChat(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    let isDone = false;
    try {
      for await (const data of readEvents(response.body)) {
        if (data === "[DONE]") {
          isDone = true;
          return;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(Number(chunk.error.code) || 500, chunk.error.message);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === "AbortError") throw error;
      throw new ApiError(-1);
    }
    if (!isDone) throw new ApiError(-1);
  }

  /**
   * Ask for the words of a recording.
   * @param {Blob} sound - the recording.
   * @param {string} name - of the file; its ending tells the format.
   * @param {string} model - which model.
   * @returns {Promise<string>} the words.
   */
  async transcribe(sound, name, model) {
    const form = new FormData();
    form.append("file", sound, name);
    if (model !== null) form.append("model", model);
    form.append("response_format", "json");
    const response = await this.#fetch("v1/audio/transcriptions", { method: "POST", body: form });
    return (await response.json()).text;
  }

  /** Fetch with the key, asking for one as often as the server refuses. */
  async #fetch(path, options) {
    for (;;) {
      const key = this.#keeper.key;
      const headers = { ...options.headers, ...(key === null ? {} : { authorization: `Bearer ${key}` }) };
      let response;
      try {
        response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(0);
      }
      if (response.ok) return response;
      if (response.status !== 401 || !(await this.#renewKey(key))) throw await errorOf(response);
    }
  }

  /** Ask for another key than the refused one; requests that fail together ask once. */
  async #renewKey(refused) {
    if (this.#keeper.key !== refused) return true;
    this.#asking ??= this.#askForKey(refused !== null).finally(() => {
      this.#asking = null;
    });
    const key = await this.#asking;
    if (key !== null) this.#keeper.key = key;
    return key !== null;
  }
}

/** @returns {Promise<ApiError>} what the server said, in its error form or in none. */
async function errorOf(response) {
  const retryAfterS = Number(response.headers.get("retry-after")) || null;
  let detail = "";
  try {
    detail = String((await response.json()).error.message);
  } catch {
    /* a proxy's page, not the server's error */
  }
  return new ApiError(response.status, detail, retryAfterS);
}
