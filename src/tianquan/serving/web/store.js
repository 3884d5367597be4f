/**
 * Conversations in the browser's IndexedDB. Media are kept beside the conversations, one record each, so that
 * saving an answer as it grows does not write its pictures again.
 *
 * Where the browser refuses a database (private windows of some), everything lives as long as the page.
 */

const DATABASE = "tianquan";
const VERSION = 1;

/**
 * A picture or a recording as it is kept.
 * @typedef {{id: string, conversationId: string, blob: Blob}} MediumRecord
 */

/** Conversations and their media. */
export class Store {
  /** @type {(id: string) => void} hears which conversation another tab has written or deleted. */
  onOther = () => {};
  #tabs = "BroadcastChannel" in window ? new BroadcastChannel(DATABASE) : null;
  #database = null;
  #conversations = new Map(); // used only without a database
  #media = new Map(); // id -> {id, conversationId, blob}, what was read or written since the page opened

  /**
   * Open the database.
   * @returns {Promise<boolean>} whether conversations outlive the page.
   */
  async open() {
    try {
      const request = indexedDB.open(DATABASE, VERSION);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("conversations", { keyPath: "id" });
        request.result.createObjectStore("media", { keyPath: "id" }).createIndex("conversation", "conversationId");
      };
      this.#database = await settled(request);
      this.#database.onversionchange = () => this.#database.close(); // another tab has a newer page
      if (this.#tabs !== null) this.#tabs.onmessage = ({ data }) => this.onOther(data);
      return true;
    } catch {
      return false;
    }
  }

  /** @returns {Promise<Array<object>>} every conversation, the newest first. */
  async list() {
    const all =
      this.#database === null
        ? [...this.#conversations.values()].map((conversation) => structuredClone(conversation))
        : await settled(this.#records("conversations", "readonly").getAll());
    return all.sort((a, b) => b.updatedMs - a.updatedMs);
  }

  /**
   * @param {string} id - of a conversation.
   * @returns {Promise<?object>} it as it is kept, or null.
   */
  async read(id) {
    if (this.#database === null) return structuredClone(this.#conversations.get(id) ?? null);
    return (await settled(this.#records("conversations", "readonly").get(id))) ?? null;
  }

  /**
   * Change what is kept of a conversation, with no other tab in between, and tell the others.
   * @param {string} id - of the conversation.
   * @param {(kept: ?object) => ?object} change - returns what to keep in place of what is kept; null where nothing is
   *   to be written.
   */
  async update(id, change) {
    if (this.#database === null) {
      const next = change(this.#conversations.get(id) ?? null);
      if (next !== null) this.#conversations.set(id, structuredClone(next));
      return;
    }
    const transaction = this.#database.transaction("conversations", "readwrite");
    const records = transaction.objectStore("conversations");
    const next = change((await settled(records.get(id))) ?? null);
    if (next === null) return;
    records.put(next);
    await finished(transaction);
    this.#tabs?.postMessage(id);
  }

  /**
   * Keep a picture or a recording.
   * @param {string} conversationId - whose it is.
   * @param {string} id - its own.
   * @param {Blob} blob - the encoded bytes.
   */
  async writeMedium(conversationId, id, blob) {
    const record = { id, conversationId, blob };
    this.#media.set(id, record);
    if (this.#database !== null) await settled(this.#records("media", "readwrite").put(record));
  }

  /**
   * @param {string} id - of a picture or a recording.
   * @returns {Promise<?Blob>} its bytes, or null where the browser has dropped them.
   */
  async readMedium(id) {
    if (!this.#media.has(id) && this.#database !== null) {
      const record = await settled(this.#records("media", "readonly").get(id));
      if (record !== undefined) this.#media.set(id, record);
    }
    return this.#media.get(id)?.blob ?? null;
  }

  /**
   * @param {string} conversationId - of a conversation.
   * @returns {Promise<MediumRecord[]>} its pictures and recordings, for `restoreMedia`.
   */
  async mediaOf(conversationId) {
    if (this.#database === null) return [...this.#media.values()].filter((m) => m.conversationId === conversationId);
    return settled(this.#records("media", "readonly").index("conversation").getAll(conversationId));
  }

  /** @param {MediumRecord[]} media - from `mediaOf`, deleted since. */
  async restoreMedia(media) {
    for (const { id, conversationId, blob } of media) await this.writeMedium(conversationId, id, blob);
  }

  /**
   * Delete a conversation and its media, and tell other tabs.
   * @param {string} id - of the conversation.
   */
  async remove(id) {
    const media = await this.mediaOf(id);
    this.#conversations.delete(id);
    media.forEach((medium) => this.#media.delete(medium.id));
    if (this.#database !== null) {
      const both = this.#database.transaction(["conversations", "media"], "readwrite");
      both.objectStore("conversations").delete(id);
      media.forEach((medium) => both.objectStore("media").delete(medium.id));
      await finished(both);
    }
    this.#tabs?.postMessage(id);
  }

  /**
   * Drop the media that no message of a conversation names any more.
   * @param {object} conversation - the conversation.
   */
  async sweep(conversation) {
    const kept = await this.read(conversation.id); // another tab may have added to it
    const messages = [...conversation.messages, ...(kept?.messages ?? [])];
    const used = new Set(messages.flatMap((message) => message.media.map((medium) => medium.id)));
    for (const { id } of await this.mediaOf(conversation.id)) {
      if (used.has(id)) continue;
      this.#media.delete(id);
      if (this.#database !== null) await settled(this.#records("media", "readwrite").delete(id));
    }
  }

  #records(name, mode) {
    return this.#database.transaction(name, mode).objectStore(name);
  }
}

/** @returns {Promise<*>} the result of an IndexedDB request. */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked by another tab"));
  });
}

/** @returns {Promise<void>} when a transaction has ended. */
function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}
