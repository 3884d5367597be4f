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
   * Keep a conversation, and tell other tabs.
   * @param {object} conversation - with its `id`.
   */
  async write(conversation) {
    if (this.#database === null) this.#conversations.set(conversation.id, structuredClone(conversation));
    else await settled(this.#records("conversations", "readwrite").put(conversation));
    this.#tabs?.postMessage(conversation.id);
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
    this.#tabs?.postMessage(conversation.id);
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
    const kept = await this.read(conversation.id); // another tab may have added to it
    const messages = [...conversation.messages, ...(kept?.messages ?? [])];
    const used = new Set(messages.flatMap((message) => message.media.map((medium) => medium.id)));
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
