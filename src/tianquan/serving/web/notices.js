/** Short messages at the edge of the page: what went wrong, what was done and can be undone. */

import { element, iconButton } from "./element.js";
import { say } from "./strings.js";

const SHOWN_MS = 7000;

/**
 * Show a notice for some seconds; longer while the pointer or the keyboard is on it.
 * @param {string} text - one sentence.
 * @param {{label: string, action: () => void}} [offer] - a button beside it.
 */
export function notice(text, offer) {
  const close = () => node.remove();
  const button =
    offer &&
    element(
      "button",
      {
        type: "button",
        class: "text-button",
        onclick: () => {
          close();
          offer.action();
        },
      },
      offer.label,
    );
  const node = element(
    "div",
    { class: "notice" },
    element("span", {}, text),
    button,
    iconButton("close", say("close"), close),
  );
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(close, SHOWN_MS);
  };
  node.addEventListener("pointerenter", () => clearTimeout(timer));
  node.addEventListener("focusin", () => clearTimeout(timer));
  node.addEventListener("pointerleave", wait);
  node.addEventListener("focusout", wait);
  document.getElementById("notices").append(node);
  wait();
}

/**
 * Tell a screen reader something that the eye sees anyway.
 * @param {string} text - what to read out.
 */
export function announce(text) {
  const region = document.getElementById("announcements");
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  }); // the same words twice are read twice
}
