/** The counters of an answer: one quiet line, and everything that was measured behind it. */

import { element } from "./element.js";
import { count, say, timeSpan } from "./strings.js";

/**
 * Show the counters of a finished answer.
 * @param {import("./conversation.js").Message} answer - the answer.
 * @returns {?HTMLElement} the line; null where nothing was measured.
 */
export function answerDetails(answer) {
  const { usage, firstTokenMs } = answer;
  if (!usage && firstTokenMs === undefined) return null;
  const rate = tokensPerSecond(answer);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  const line = [
    firstTokenMs === undefined ? null : say("firstToken", { value: timeSpan(firstTokenMs) }),
    rate === null ? null : say("rate", { value: perSecond(rate) }),
    usage ? say("tokensInOut", { in: count(usage.prompt_tokens), out: count(usage.completion_tokens) }) : null,
    cached ? say("cachedShort", { value: count(cached) }) : null,
  ].filter(Boolean);
  return element(
    "details",
    { class: "counters" },
    element("summary", { title: say("details") }, ...line.map((part) => element("span", {}, part))),
    element(
      "dl",
      {},
      ...rows(answer, rate).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    ),
  );
}

/** As the server measured it; else from what arrived here. */
function tokensPerSecond({ timings, usage, firstTokenMs, totalMs }) {
  if (timings?.predicted_per_second > 0) return timings.predicted_per_second;
  if (!usage || usage.completion_tokens < 2 || !(totalMs > firstTokenMs)) return null;
  return (1000 * (usage.completion_tokens - 1)) / (totalMs - firstTokenMs);
}

/** Three digits are read at a glance, and more are not measured. */
function perSecond(rate) {
  return rate < 100 ? rate.toFixed(1) : count(Math.round(rate));
}

function rows(answer, rate) {
  const { usage, timings, firstTokenMs, totalMs } = answer;
  const parts = usage?.prompt_tokens_details ?? {};
  const counts = usage
    ? [
        [say("promptTokens"), usage.prompt_tokens],
        [say("imageTokens"), parts.image_tokens || null],
        [say("audioTokens"), parts.audio_tokens || null],
        [say("videoTokens"), parts.video_tokens || null],
        [say("cachedTokens"), parts.cached_tokens],
        [say("completionTokens"), usage.completion_tokens],
      ]
    : [];
  const times = [
    [say("timeToFirst"), firstTokenMs],
    [say("timeQueue"), timings?.queue_ms],
    [say("timeVision"), timings?.vision_ms],
    [say("timeAudio"), timings?.audio_ms],
    [say("timePrompt"), timings?.prompt_ms],
    [say("timeTotal"), totalMs],
  ];
  return [
    ...counts.filter(([, value]) => value !== undefined && value !== null).map(([name, value]) => [name, count(value)]),
    ...times.filter(([, value]) => value > 0).map(([name, value]) => [name, timeSpan(value)]),
    ...(rate === null ? [] : [[say("speed"), say("rate", { value: perSecond(rate) })]]),
  ];
}
