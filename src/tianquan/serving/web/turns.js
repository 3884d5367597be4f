/**
 * Whose turn it is: in a conversation one answer is written at a time, in this tab or in another.
 *
 * A Web Lock of the conversation's name is held during a turn. Where the browser has none (a page that came over plain
 * http from another machine), tabs do not know of each other's turns, and what both wrote is merged.
 */

const LOCK = "tianquan.turn.";
const LOOK_MS = 500; // while another tab has the turn; to wait for its lock would take the lock from its next turn

/** The turns of this tab, and what it knows of others'. */
export class Turns {
  /** @type {(id: string) => void} hears of a conversation in which a turn begins or ends, here or elsewhere. */
  onChange = () => {};
  /** @type {(id: string) => void} hears of a conversation in which another tab's turn has ended. */
  onEndElsewhere = () => {};
  #here = new Map(); // conversation id -> {controller, ended}
  #elsewhere = new Set(); // conversation ids

  /**
   * @param {string} id - of a conversation.
   * @returns {boolean} whether this tab has the turn.
   */
  isHere(id) {
    return this.#here.has(id);
  }

  /**
   * @param {string} id - of a conversation.
   * @returns {boolean} whether another tab has the turn, as far as this one knows.
   */
  isElsewhere(id) {
    return this.#elsewhere.has(id);
  }

  /**
   * @param {string} id - of a conversation.
   * @returns {boolean} whether any tab has the turn, as far as this one knows.
   */
  isTaken(id) {
    return this.isHere(id) || this.isElsewhere(id);
  }

  /** @param {string} id - of a conversation in which this tab is to end its turn, if it has it. */
  stop(id) {
    this.#here.get(id)?.controller.abort();
  }

  /**
   * Take the turn; one that this tab has already is stopped and waited for.
   * @param {string} id - of a conversation.
   * @param {(signal: AbortSignal) => Promise<void>} work - what to do in the turn, until the signal says stop.
   * @returns {Promise<boolean>} false where another tab has the turn: then nothing was done.
   */
  async take(id, work) {
    const before = this.#here.get(id);
    before?.controller.abort();
    const controller = new AbortController();
    const turn = { controller, ended: this.#work(id, controller.signal, work, before?.ended) };
    this.#here.set(id, turn);
    this.onChange(id);
    try {
      return await turn.ended;
    } finally {
      if (this.#here.get(id) === turn) {
        this.#here.delete(id);
        this.onChange(id);
      }
    }
  }

  async #work(id, signal, work, before) {
    await before;
    if (signal.aborted) return true;
    if (navigator.locks === undefined) {
      await work(signal);
      return true;
    }
    return navigator.locks.request(LOCK + id, { ifAvailable: true }, async (lock) => {
      if (lock !== null) await work(signal);
      return lock !== null;
    });
  }

  /**
   * Find out whether another tab has the turn, and go on looking until it has not.
   * @param {string} id - of a conversation.
   * @returns {Promise<boolean>} whether it has.
   */
  async look(id) {
    if (this.#elsewhere.has(id)) return true;
    if (!(await this.#isHeldElsewhere(id))) return false;
    if (!this.#elsewhere.has(id)) {
      this.#elsewhere.add(id);
      this.onChange(id);
      this.#awaitEnd(id);
    }
    return true;
  }

  async #awaitEnd(id) {
    do {
      await new Promise((resolve) => {
        setTimeout(resolve, LOOK_MS);
      });
    } while (await this.#isHeldElsewhere(id));
    this.#elsewhere.delete(id);
    this.onChange(id);
    this.onEndElsewhere(id);
  }

  async #isHeldElsewhere(id) {
    if (navigator.locks === undefined || this.#here.has(id)) return false;
    const { held } = await navigator.locks.query();
    return !this.#here.has(id) && held.some(({ name }) => name === LOCK + id);
  }
}
