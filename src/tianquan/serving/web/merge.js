/**
 * A conversation that two tabs have changed, made one again. Three copies tell what was done where: this tab's own, the
 * one that is kept, and the one this tab last saw kept. What only the own copy lacks was removed here, what only the
 * kept one lacks was removed there, and what was never seen kept is new.
 */

/**
 * What a tab remembers of a conversation as it is kept.
 * @typedef {{ids: Set<string>, title: ?string, settings: string}} Seen
 */

/** @type {Seen} of a conversation that was never kept. */
const NOTHING = { ids: new Set() };

/**
 * @param {import("./conversation.js").Conversation} conversation - as it is kept.
 * @returns {Seen} what to remember of it.
 */
export function seenOf({ messages, title, settings }) {
  return { ids: new Set(messages.map(({ id }) => id)), title, settings: JSON.stringify(settings) };
}

/**
 * Take into a tab's own conversation what another tab did to it. Messages stay the objects they are, since turns write
 * to them and the page shows them.
 * @param {import("./conversation.js").Conversation} own - changed in place.
 * @param {import("./conversation.js").Conversation} kept - as it is kept now.
 * @param {Seen} [seen] - as this tab last saw it kept.
 * @returns {Set<string>} the ids of messages of this tab that have changed.
 */
export function mergeInto(own, kept, seen = NOTHING) {
  if (own.title === seen.title) own.title = kept.title;
  if (JSON.stringify(own.settings) === seen.settings) own.settings = kept.settings;
  own.updatedMs = Math.max(own.updatedMs, kept.updatedMs);
  const changed = new Set();
  const ownById = new Map(own.messages.map((message) => [message.id, message]));
  const shared = kept.messages
    .filter(({ id }) => ownById.has(id) || !seen.ids.has(id))
    .map((message) => {
      const mine = ownById.get(message.id);
      if (mine === undefined) return message;
      if (improve(mine, message)) changed.add(mine.id);
      return mine;
    });
  const keptIds = new Set(kept.messages.map(({ id }) => id));
  const unsaved = own.messages.filter(({ id }) => !keptIds.has(id) && !seen.ids.has(id));
  own.messages = [...shared, ...unsaved];
  return changed;
}

/** Take what the other copy of a message knows better; returns whether it did. */
function improve(mine, other) {
  const isBetter = hasEnded(mine) === hasEnded(other) ? other.text.length > mine.text.length : hasEnded(other);
  if (isBetter) Object.assign(mine, other);
  const heard = mine.media.filter((medium, n) => {
    const { transcript } = other.media[n];
    if (medium.transcript !== undefined || transcript === undefined) return false;
    medium.transcript = transcript;
    return true;
  });
  return isBetter || heard.length > 0;
}

/** A tab that opens calls an answer interrupted though another may be writing it still: that is no end. */
function hasEnded({ finish, error }) {
  return finish !== null && (finish !== "interrupted" || Boolean(error));
}
