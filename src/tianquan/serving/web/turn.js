/** One answer: the request, the text as it comes, the counters, and how it ended. */

import { ApiError, UNSENT } from "./api.js";
import { requestBody } from "./conversation.js";

/**
 * Fill an answer from the server. Never throws for what a server or a user does: the answer says how it ended.
 * @param {import("./conversation.js").Conversation} conversation - with the answer as one of its messages; what comes
 *   before it is sent.
 * @param {import("./conversation.js").Message} answer - the empty answer.
 * @param {{api: import("./api.js").Api, model: ?string, readMedium: (id: string) => Promise<?Blob>,
 *          signal: AbortSignal, onChange: () => void}} context - what it needs; `onChange` hears of each new piece.
 */
export async function runTurn(conversation, answer, { api, model, readMedium, signal, onChange }) {
  const began = performance.now();
  const before = conversation.messages.slice(0, conversation.messages.indexOf(answer));
  try {
    const body = await requestBody({ ...conversation, messages: withoutRefused(before) }, model, readMedium);
    for await (const chunk of api.streamChat(body, signal)) {
      const hadText = answer.text !== "";
      applyChunk(answer, chunk);
      if (!hadText && answer.text !== "") answer.firstTokenMs = performance.now() - began;
      onChange();
    }
    answer.finish ??= "stop";
  } catch (error) {
    answer.finish = error.name === "AbortError" ? "stopped" : "interrupted";
    if (answer.finish === "stopped") return;
    // Beside what the server says there is what the browser does: a file that was sent may be gone by now.
    const { status, detail, retryAfterS } = error instanceof ApiError ? error : { status: UNSENT, detail: String(error) };
    answer.error = { status, detail, retryAfterS };
  } finally {
    answer.totalMs = performance.now() - began;
    onChange();
  }
}

/** The messages without questions the server could not take: sent again they would spoil every later one. */
function withoutRefused(messages) {
  const isRefused = ({ error, text }) =>
    error && !text && (error.status === UNSENT || [400, 413, 415, 422].includes(error.status));
  return messages.filter((message, n) => !isRefused(message) && !(messages[n + 1] && isRefused(messages[n + 1])));
}

/** Add what one chunk says to an answer. */
function applyChunk(answer, chunk) {
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) answer.text += choice.delta.content;
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.timings) answer.timings = chunk.timings;
}
