/**
 * Small choices kept in the browser: theme, language, sampling settings of new conversations.
 * The key of the server is kept for the tab only.
 */

const PREFIX = "tianquan.";

/**
 * What is sent with each request when set; `null` leaves a field to the server.
 * @typedef {{system: string, temperature: ?number, top_p: ?number, max_tokens: ?number, seed: ?number,
 *            detail: "auto"|"high"|"low"}} Settings
 */

/** @type {Settings} */
export const DEFAULT_SETTINGS = Object.freeze({
  system: "",
  temperature: null,
  top_p: null,
  max_tokens: null,
  seed: null,
  detail: "auto",
});

/**
 * Read a choice.
 * @param {string} name - of the choice.
 * @param {*} absent - what to return where none was made.
 * @returns {*} the choice.
 */
export function readChoice(name, absent) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? absent;
  } catch {
    // storage is switched off, or holds what another version wrote
    return absent;
  }
}

/**
 * Keep a choice, where the browser lets us.
 * @param {string} name - of the choice.
 * @param {*} value - the choice; anything JSON can hold.
 */
export function keepChoice(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    /* storage is switched off: the choice lasts as long as the page */
  }
}

/** @returns {Settings} the settings of new conversations. */
export function readSettings() {
  return { ...DEFAULT_SETTINGS, ...readChoice("settings", {}) };
}

/** @returns {"system"|"light"|"dark"} the chosen theme. */
export function readTheme() {
  // first_paint.js reads it before any module is there, as a bare word
  return document.documentElement.dataset.theme ?? "system";
}

/**
 * Show and keep a theme.
 * @param {"system"|"light"|"dark"} theme - the theme.
 */
export function useTheme(theme) {
  const root = document.documentElement;
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  try {
    localStorage.setItem(`${PREFIX}theme`, theme);
  } catch {
    /* storage is switched off */
  }
}

/** The server's key, in the tab's own storage. */
export class KeyKeeper {
  #key = null;

  constructor() {
    try {
      this.#key = sessionStorage.getItem(`${PREFIX}key`);
    } catch {
      /* storage is switched off */
    }
  }

  /** @returns {?string} the key, if one was given. */
  get key() {
    return this.#key;
  }

  /** @param {?string} key - the key to use from now on. */
  set key(key) {
    this.#key = key;
    try {
      if (key === null) sessionStorage.removeItem(`${PREFIX}key`);
      else sessionStorage.setItem(`${PREFIX}key`, key);
    } catch {
      /* storage is switched off: the key lasts as long as the page */
    }
  }
}
