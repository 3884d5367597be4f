/**
 * What a conversation is, and the request and the files made of it. No page here, only data.
 */

import { partsOf } from "./sound.js";
import { say } from "./strings.js";

/**
 * A picture or a recording of a message. Its bytes are in the store under its id.
 * @typedef {{id: string, kind: "picture"|"sound"|"video", name: string, width?: number, height?: number,
 *            seconds?: ?number, peaks?: ?number[], transcript?: string}} Medium
 *
 * `finish`: null while the answer is being written, a finish_reason, "stopped" by the user, or "interrupted".
 * @typedef {{id: string, role: "user"|"assistant", text: string, media: Medium[], finish?: ?string, error?: ?object,
 *            usage?: object, timings?: object, firstTokenMs?: number, totalMs?: number}} Message
 *
 * @typedef {{id: string, title: ?string, createdMs: number, updatedMs: number, messages: Message[],
 *            settings: import("./preferences.js").Settings}} Conversation
 */

const TITLE_LENGTH = 48;

/** @returns {string} a name that no other record has. */
export function newId() {
  // crypto.randomUUID exists on https and localhost only; a page on the local network has getRandomValues
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {import("./preferences.js").Settings} settings - for its requests.
 * @returns {Conversation} an empty conversation.
 */
export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: null, createdMs: now, updatedMs: now, messages: [], settings: { ...settings } };
}

/**
 * @param {"user"|"assistant"} role - whose it is.
 * @param {string} text - what was said.
 * @param {Medium[]} media - pictures and sound with it.
 * @returns {Message} a message.
 */
export function newMessage(role, text, media = []) {
  return { id: newId(), role, text, media, ...(role === "assistant" ? { finish: null, error: null } : {}) };
}

/**
 * @param {Conversation} conversation - the conversation.
 * @returns {string} the title its user gave it, or the beginning of the first message.
 */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((message) => message.role === "user");
  if (first === undefined) return say("untitled");
  const line = first.text.trim().split("\n")[0];
  if (line) return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line;
  const kinds = first.media.map((medium) => medium.kind);
  if (kinds.includes("picture")) return say("picturesTitle");
  return say(kinds.includes("video") ? "videoTitle" : "soundTitle");
}

/**
 * @param {Conversation} conversation - the conversation.
 * @returns {boolean} whether an answer in it has no end.
 */
export function hasUnfinished(conversation) {
  return conversation.messages.some(({ finish }) => finish === null);
}

/**
 * @param {Conversation} conversation - in which nobody writes any more.
 * @returns {Set<string>} the ids of its answers that had no end, and are interrupted now.
 */
export function interruptAnswers(conversation) {
  const unfinished = conversation.messages.filter(({ finish }) => finish === null);
  for (const message of unfinished) message.finish = "interrupted";
  return new Set(unfinished.map(({ id }) => id));
}

/**
 * @param {Conversation} conversation - the conversation.
 * @returns {?object} the usage of its last answer that has one.
 */
export function lastUsage(conversation) {
  return conversation.messages.findLast((message) => message.usage)?.usage ?? null;
}

/**
 * Make the body of a chat request.
 * @param {Conversation} conversation - whose messages to send.
 * @param {?string} model - which model answers.
 * @param {(id: string) => Promise<?Blob>} readMedium - the store's.
 * @returns {Promise<object>} the body, without the stream fields.
 */
export async function requestBody(conversation, model, readMedium) {
  const { system, detail, ...sampling } = conversation.settings;
  const chosen = Object.entries(sampling).filter(([, value]) => value !== null && value !== undefined);
  return {
    ...(model === null ? {} : { model }),
    messages: await openaiMessages(conversation, system, detail, readMedium),
    ...Object.fromEntries(chosen),
  };
}

async function openaiMessages(conversation, system, detail, readMedium) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, media } of conversation.messages) {
    if (media.length > 0) {
      const parts = await Promise.all(media.map((medium) => mediumParts(medium, detail, readMedium)));
      messages.push({ role, content: [...parts.flat(), ...(text ? [{ type: "text", text }] : [])] });
    } else if (text) messages.push({ role, content: text }); // an answer that failed has none
  }
  return messages;
}

/** The content parts of one medium; words in its place where the browser has dropped its bytes. */
async function mediumParts({ id, kind, name, seconds }, detail, readMedium) {
  const blob = await readMedium(id);
  if (blob === null) return [{ type: "text", text: say("lostMedium", { name }) }];
  if (kind === "picture") return [{ type: "image_url", image_url: { url: await dataUrl(blob), detail } }];
  if (kind === "video") return [{ type: "video_url", video_url: { url: await dataUrl(blob) } }];
  return Promise.all(
    (await partsOf(blob, seconds)).map(async (part) => {
      const url = await dataUrl(part);
      const format = { "audio/wav": "wav", "audio/mpeg": "mp3" }[part.type];
      if (format === undefined) return { type: "audio_url", audio_url: { url } };
      return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
    }),
  );
}

/**
 * @param {Blob} blob - any bytes.
 * @returns {Promise<string>} as a data: URL.
 */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * Write a conversation as the messages a client would send: with media, ready for any OpenAI client.
 * @param {Conversation} conversation - the conversation.
 * @param {(id: string) => Promise<?Blob>} readMedium - the store's.
 * @returns {Promise<Blob>} a JSON file.
 */
export async function jsonFile(conversation, readMedium) {
  const body = await requestBody(conversation, null, readMedium);
  const content = { title: titleOf(conversation), created: new Date(conversation.createdMs).toISOString(), ...body };
  return new Blob([JSON.stringify(content, null, 2)], { type: "application/json" });
}

/**
 * Write a conversation for people to read; media are named, not included.
 * @param {Conversation} conversation - the conversation.
 * @returns {Blob} a Markdown file.
 */
export function markdownFile(conversation) {
  const turns = conversation.messages.map(({ role, text, media }) => {
    const named = media.map((medium) => `*[${medium.name}]*${medium.transcript ? `\n\n> ${medium.transcript}` : ""}`);
    return [`## ${say(role === "user" ? "you" : "assistant")}`, ...named, text].filter(Boolean).join("\n\n");
  });
  return new Blob([[`# ${titleOf(conversation)}`, ...turns, ""].join("\n\n")], { type: "text/markdown" });
}

/**
 * @param {Conversation} conversation - the conversation.
 * @returns {string} its title as the stem of a file name.
 */
export function fileStem(conversation) {
  return (
    titleOf(conversation)
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 40) || "conversation"
  );
}
