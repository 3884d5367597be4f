/** All conversations: kept in the browser, and in step with what other tabs do to them. */

import { mergeInto, seenOf } from "./merge.js";
import { notice } from "./notices.js";
import { Store } from "./store.js";
import { say } from "./strings.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

/** The conversations that have a message. */
export class Conversations {
  /** @type {(conversation: Conversation, changed: Set<string>) => void} hears what other tabs did: ids of messages. */
  onMerge = () => {};
  /** @type {(conversation: Conversation) => void} hears of one that another tab has deleted. */
  onGone = () => {};
  #store = new Store();
  #all = [];
  #seen = new Map(); // conversation id -> what this tab last saw kept

  /** @returns {Conversation[]} all of them, in no order. */
  get all() {
    return this.#all;
  }

  /**
   * Read what is kept.
   * @returns {Promise<boolean>} whether conversations outlive the page.
   */
  async open() {
    const isKept = await this.#store.open();
    this.#store.onOther = (id) => this.follow(id);
    this.#all = await this.#store.list();
    for (const conversation of this.#all) this.#seen.set(conversation.id, seenOf(conversation));
    return isKept;
  }

  /**
   * @param {Conversation} conversation - any.
   * @returns {boolean} whether it is one of these.
   */
  has(conversation) {
    return this.#all.includes(conversation);
  }

  /** @param {Conversation} conversation - that has a message now; it is kept with the next `save`. */
  add(conversation) {
    if (!this.has(conversation)) this.#all.push(conversation);
  }

  /**
   * Keep a conversation, together with what other tabs have added to it.
   * @param {Conversation} conversation - one without messages, or deleted, is not kept.
   */
  async save(conversation) {
    if (!this.has(conversation)) return;
    const { id } = conversation;
    let changed = new Set();
    let seen = null;
    const change = (kept) => {
      if (kept === null && this.#seen.has(id)) return null; // another tab has deleted it
      if (kept !== null) changed = mergeInto(conversation, kept, this.#seen.get(id));
      seen = seenOf(conversation);
      return conversation;
    };
    if (!(await this.#keep(this.#store.update(id, change))) || !this.has(conversation)) return;
    if (seen === null) {
      this.#drop(conversation);
      return;
    }
    this.#seen.set(id, seen);
    this.onMerge(conversation, changed);
  }

  /**
   * Keep the conversation of a medium that has changed, whichever is open.
   * @param {object} medium - of a message.
   */
  async saveThatHas(medium) {
    const owner = this.#all.find(({ messages }) => messages.some(({ media }) => media.includes(medium)));
    if (owner !== undefined) await this.save(owner);
  }

  /**
   * Take over what another tab did to a conversation.
   * @param {string} id - of the conversation.
   */
  async follow(id) {
    const kept = await this.#store.read(id);
    const own = this.#all.find((conversation) => conversation.id === id);
    if (kept === null) {
      if (own !== undefined && this.#seen.has(id)) this.#drop(own);
      return;
    }
    const seen = this.#seen.get(id);
    this.#seen.set(id, seenOf(kept));
    if (own === undefined) this.#all.push(kept);
    this.onMerge(own ?? kept, own === undefined ? new Set() : mergeInto(own, kept, seen));
  }

  /**
   * Delete a conversation.
   * @param {Conversation} conversation - the conversation.
   * @returns {Promise<() => Promise<void>>} brings it back.
   */
  async remove(conversation) {
    const { id } = conversation;
    this.#forget(conversation);
    const media = await this.#store.mediaOf(id);
    await this.#keep(this.#store.remove(id));
    return async () => {
      await this.#keep(this.#store.restoreMedia(media));
      this.add(conversation);
      await this.save(conversation);
    };
  }

  /**
   * Remember the messages of a conversation before some of them are taken away.
   * @param {Conversation} conversation - the conversation.
   * @returns {() => Promise<void>} brings them back.
   */
  remember(conversation) {
    const messages = [...conversation.messages];
    const reading = this.#store.mediaOf(conversation.id).catch(() => []);
    return async () => {
      await this.#keep(this.#store.restoreMedia(await reading)); // this tab or another may have swept them meanwhile
      conversation.messages = messages;
      await this.save(conversation);
    };
  }

  /**
   * @param {string} id - of a picture or a recording.
   * @returns {Promise<?Blob>} its bytes, or null where the browser has dropped them.
   */
  readMedium(id) {
    return this.#store.readMedium(id);
  }

  /**
   * Keep the pictures and recordings of a message that is about to be added.
   * @param {Conversation} conversation - whose they are.
   * @param {Array<{id: string, blob: Blob}>} media - their names and bytes.
   */
  async writeMedia(conversation, media) {
    await this.#keep(Promise.all(media.map(({ id, blob }) => this.#store.writeMedium(conversation.id, id, blob))));
  }

  /** @param {Conversation} conversation - whose media to drop that no message names any more. */
  sweep(conversation) {
    this.#store.sweep(conversation).catch(() => {}); // what is left is swept the next time
  }

  #forget(conversation) {
    this.#all = this.#all.filter((other) => other !== conversation);
    this.#seen.delete(conversation.id);
  }

  #drop(conversation) {
    this.#forget(conversation);
    this.onGone(conversation);
  }

  /** Wait for the store; where the browser could not keep something, say so and return false. */
  async #keep(promise) {
    try {
      await promise;
      return true;
    } catch {
      notice(say("keepFailed"));
      return false;
    }
  }
}
