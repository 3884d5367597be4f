/** Asks for the server's key. */

import { element } from "./element.js";
import { say } from "./strings.js";

/**
 * Ask.
 * @param {boolean} wasRejected - whether a key was given and refused.
 * @returns {Promise<?string>} the key; null where the user closes the dialog.
 */
export function askForKey(wasRejected) {
  return new Promise((resolve) => {
    const input = element("input", {
      id: "key",
      type: "password",
      autocomplete: "current-password",
      spellcheck: "false",
      required: true,
    });
    let key = null;
    const form = element(
      "form",
      { method: "dialog" },
      element("h2", { id: "key-title" }, say("keyTitle")),
      wasRejected
        ? element("p", { class: "error-line", role: "alert" }, say("keyRejected"))
        : element("p", { class: "more" }, say("keyMore")),
      element("label", { for: "key" }, say("key")),
      input,
      element(
        "div",
        { class: "dialog-bar" },
        element("button", { type: "button", class: "text-button", onclick: () => dialog.close() }, say("cancel")),
        element("button", { type: "submit", class: "strong-button" }, say("continue")),
      ),
    );
    form.addEventListener("submit", () => {
      key = input.value.trim() || null;
    });
    const dialog = element(
      "dialog",
      {
        class: "key-dialog",
        "aria-labelledby": "key-title",
        onclose: () => {
          dialog.remove();
          resolve(key);
        },
      },
      form,
    );
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}
