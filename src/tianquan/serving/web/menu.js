/** A small menu beside the button that opens it. */

import { element, icon } from "./element.js";
import { isOfInputMethod } from "./keys.js";

const MARGIN = 8; // pixels to the edge of the window

/**
 * Open a menu; it closes by itself when something else is pressed, with Escape, or when an entry is chosen.
 * @param {HTMLElement} button - where it opens.
 * @param {Array<{icon: string, label: string, action: () => void, isGrave?: boolean}>} entries - top to bottom.
 */
export function openMenu(button, entries) {
  const close = () => menu.remove();
  const items = entries.map(({ icon: name, label, action, isGrave }) =>
    element(
      "button",
      {
        type: "button",
        role: "menuitem",
        class: isGrave ? "is-grave" : "",
        onclick: () => {
          close();
          button.focus();
          action();
        },
      },
      icon(name),
      label,
    ),
  );
  const menu = element(
    "div",
    { class: "menu", role: "menu", popover: "auto", "aria-label": button.getAttribute("aria-label") },
    ...items,
  );
  menu.addEventListener("toggle", (event) => {
    if (event.newState === "closed") close();
  });
  menu.addEventListener("keydown", (event) => {
    if (isOfInputMethod(event)) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const at = items.indexOf(document.activeElement);
    items[(at + step + items.length) % items.length].focus();
  });
  document.body.append(menu);
  menu.showPopover();
  const place = button.getBoundingClientRect();
  menu.style.left = `${Math.max(MARGIN, Math.min(place.left, window.innerWidth - menu.offsetWidth - MARGIN))}px`;
  menu.style.top = `${Math.min(place.bottom + 4, window.innerHeight - menu.offsetHeight - MARGIN)}px`;
  items[0].focus();
}
