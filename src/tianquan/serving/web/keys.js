/** Which keys the page may take for itself. */

/**
 * While an input method is composing, its keys are its own: Enter chooses a word, Escape gives one up.
 * @param {KeyboardEvent} event - of a key.
 * @returns {boolean} whether the key goes to an input method.
 */
export function isOfInputMethod(event) {
  return event.isComposing || event.keyCode === 229; // Safari ends the composition before it tells of the key
}
