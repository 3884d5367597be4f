/**
 * Conversations in the browser's IndexedDB. Media are kept beside the conversations, one record each, so that
 * saving an answer as it grows does not write its pictures again.
 *
 * Where the browser refuses a database (private windows of some), everything lives as long as the page.
 */

const DATABASE = "tianquan";
const VERSION = 1;

/**
 * @typedef {{conversation: object, media: Array<{id: string, conversationId: string, blob: Blob}>}} Removed
 */

/** Conversations and their media. */
export class Store {
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
   * Keep a conversation.
   * @param {object} conversation - with its `id`.
   */
  async write(conversation) {
    if (this.#database === null) this.#conversations.set(conversation.id, structuredClone(conversation));
    else await settled(this.#records("conversations", "readwrite").put(conversation));
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
   * Delete a conversation and its media.
   * @param {object} conversation - the conversation.
   * @returns {Promise<Removed>} what `restore` takes back.
   */
  async remove(conversation) {
    const media = await this.#mediaOf(conversation.id);
    this.#conversations.delete(conversation.id);
    media.forEach(({ id }) => this.#media.delete(id));
    if (this.#database !== null) {
      const both = this.#database.transaction(["conversations", "media"], "readwrite");
      both.objectStore("conversations").delete(conversation.id);
      media.forEach(({ id }) => both.objectStore("media").delete(id));
      await finished(both);
    }
    return { conversation, media };
  }

  /** @param {Removed} removed - what `remove` returned. */
  async restore({ conversation, media }) {
    for (const { id, blob } of media) await this.writeMedium(conversation.id, id, blob);
    await this.write(conversation);
  }

  /**
   * Drop the media that no message of a conversation names any more.
   * @param {object} conversation - the conversation.
   */
  async sweep(conversation) {
    const used = new Set(conversation.messages.flatMap((message) => message.media.map((medium) => medium.id)));
    for (const { id } of await this.#mediaOf(conversation.id)) {
      if (used.has(id)) continue;
      this.#media.delete(id);
      if (this.#database !== null) await settled(this.#records("media", "readwrite").delete(id));
    }
  }

  async #mediaOf(conversationId) {
    if (this.#database === null) return [...this.#media.values()].filter((m) => m.conversationId === conversationId);
    return settled(this.#records("media", "readonly").index("conversation").getAll(conversationId));
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
