/**
 * DOM nodes in one call. Text only ever enters the page as text nodes; there is no way to pass markup.
 */

/**
 * Make an element.
 * @param {string} tag - name of the element.
 * @param {Object<string, *>} [properties] - `class`, `on*` handlers, `dataset`, booleans, and attributes.
 * @param {...(Node|string|null|undefined|false)} children - strings become text nodes; empty values are left out.
 * @returns {HTMLElement} the element.
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child || child === 0));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** Strokes of the icons in a 24 x 24 field. */
const ICONS = {
  send: "M12 19V5 M5.5 11.5 12 5l6.5 6.5",
  stop: "M7.5 7.5h9v9h-9z",
  microphone: "M12 3.5a3 3 0 0 0-3 3v5a3 3 0 0 0 6 0v-5a3 3 0 0 0-3-3z M5.5 11.5a6.5 6.5 0 0 0 13 0 M12 18v3",
  attach: "M12 5v14 M5 12h14",
  plus: "M12 5v14 M5 12h14",
  picture: "M4 5h16v14H4z M4.5 17l5-5.5 4 4 2.5-2.5 4 4 M15.5 9.2h.01",
  wave: "M4 10v4 M8 7v10 M12 4v16 M16 8v8 M20 10.5v3",
  menu: "M4 7h16 M4 12h16 M4 17h16",
  close: "M6 6l12 12 M18 6 6 18",
  sliders: "M4 8h9 M19 8h1 M4 16h1 M11 16h9 M16 5.5v5 M8 13.5v5",
  theme: "M12 4a8 8 0 1 0 0 16z M12 4a8 8 0 0 1 0 16",
  language: "M3.5 6h9 M8 4v2 M5 6c.6 3.4 3 6 6.2 7.6 M11 6c-.6 3.6-3.4 6.6-7 8 M12.5 20l4-9.5 4 9.5 M13.9 17h5.2",
  copy: "M9 9h10v11H9z M6 15H5V4h10v2",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M5 19l1-4L16.5 4.5l3 3L9 18z M14 7l3 3",
  again: "M19 12a7 7 0 1 1-2.2-5.1 M19.5 3.5v4.2h-4.2",
  remove: "M5 7h14 M10 7V4.5h4V7 M7 7l.8 12.5h8.4L17 7 M10.5 10.5v6 M13.5 10.5v6",
  save: "M12 4v11 M7 10.5 12 15l5-4.5 M5 19.5h14",
  more: "M6 12h.01 M12 12h.01 M18 12h.01",
  play: "M8.5 5.5v13l10-6.5z",
  pause: "M9 6v12 M15 6v12",
  down: "M12 5v14 M5.5 12.5 12 19l6.5-6.5",
  text: "M5 6h14 M5 10.5h14 M5 15h9",
};

/**
 * Make an icon; it says nothing to a screen reader, the button around it has the label.
 * @param {keyof typeof ICONS} name - which icon.
 * @returns {SVGElement} the drawing.
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [
    ["viewBox", "0 0 24 24"],
    ["class", `icon icon-${name}`],
    ["aria-hidden", "true"],
  ]) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * Make a button that shows an icon, with its label for a pointer and a screen reader.
 * @param {string} iconName - see `icon`.
 * @param {string} label - what it does, in the page's language.
 * @param {() => void} onclick - what happens.
 * @param {string} [className] - extra classes.
 * @returns {HTMLButtonElement} the button.
 */
export function iconButton(iconName, label, onclick, className = "quiet") {
  return element(
    "button",
    { type: "button", class: className, "aria-label": label, title: label, onclick },
    icon(iconName),
  );
}

/**
 * Offer a file to the user's downloads folder.
 * @param {Blob} blob - the content.
 * @param {string} name - the file's name.
 */
export function saveFile(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
