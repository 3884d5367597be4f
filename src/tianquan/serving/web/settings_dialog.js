/** How answers are chosen: the system prompt, sampling, and how closely pictures are looked at. */

import { element, iconButton } from "./element.js";
import { isOfInputMethod } from "./keys.js";
import { DEFAULT_SETTINGS } from "./preferences.js";
import { say } from "./strings.js";

/** The numbers: their name in a request and in the strings, and their range. */
const NUMBERS = [
  { name: "temperature", key: "temperature", low: 0, high: 2, step: "0.1" },
  { name: "top_p", key: "topP", low: 0.01, high: 1, step: "0.05" },
  { name: "max_tokens", key: "maxTokens", low: 1, high: 32768, step: "1" },
  { name: "seed", key: "seed", low: 0, high: 2 ** 31 - 1, step: "1" },
];

/**
 * Let the user change settings; closed without saving, the dialog changes nothing.
 * @param {import("./preferences.js").Settings} settings - as they are.
 * @param {(settings: import("./preferences.js").Settings) => void} onSave - hears of them when they are saved.
 */
export function openSettings(settings, onSave) {
  const system = element("textarea", { id: "setting-system", rows: "3", dir: "auto" });
  const numbers = NUMBERS.map((number) => ({ ...number, input: numberInput(number) }));
  const detail = element(
    "select",
    { id: "setting-detail" },
    ...[
      ["auto", "detailAuto"],
      ["high", "detailHigh"],
      ["low", "detailLow"],
    ].map(([value, key]) => element("option", { value }, say(key))),
  );
  const fill = (values) => {
    system.value = values.system;
    detail.value = values.detail;
    numbers.forEach(({ name, input }) => {
      input.value = values[name] ?? "";
      input.dispatchEvent(new Event("input")); // what was wrong with it is no more
    });
  };
  const save = (event) => {
    const wrong = numbers.filter(({ input }) => !input.checkValidity());
    if (wrong.length === 0) onSave(read(system, numbers, detail));
    else {
      event.preventDefault();
      wrong[0].input.focus();
    }
  };
  const form = element(
    "form",
    { method: "dialog", novalidate: true, onsubmit: save },
    element(
      "header",
      { class: "dialog-head" },
      element("h2", { id: "settings-title" }, say("settings")),
      iconButton("close", say("close"), () => dialog.close()),
    ),
    element("p", { class: "more" }, say("settingsMore")),
    field("systemPrompt", system),
    element("div", { class: "number-fields" }, ...numbers.map((number) => numberField(number))),
    field("detail", detail),
    element(
      "div",
      { class: "dialog-bar" },
      element("button", { type: "button", class: "text-button", onclick: () => fill(DEFAULT_SETTINGS) }, say("reset")),
      element("button", { type: "submit", class: "strong-button" }, say("save")),
    ),
  );
  const dialog = element(
    "dialog",
    {
      class: "settings-dialog",
      "aria-labelledby": "settings-title",
      onkeydown: (event) => {
        if (isOfInputMethod(event)) event.preventDefault(); // its Escape would close the dialog
      },
      onclose: () => dialog.remove(),
    },
    form,
  );
  fill(settings);
  document.body.append(dialog);
  dialog.showModal();
}

function numberInput({ name, low, high, step }) {
  return element("input", {
    id: `setting-${name}`,
    type: "number",
    min: low,
    max: high,
    step: step === "1" ? "1" : "any",
    placeholder: "–",
  });
}

/** A number with what is wrong with it below, from when it could not be saved until it is changed. */
function numberField({ key, input, low, high }) {
  const wrong = element("span", { class: "error-line", role: "alert" });
  const showWrong = (text) => {
    wrong.textContent = text;
    wrong.hidden = text === "";
    input.setAttribute("aria-invalid", String(text !== ""));
  };
  input.addEventListener("invalid", () => showWrong(say("notInRange", { low, high })));
  input.addEventListener("input", () => showWrong(""));
  showWrong("");
  const node = field(key, input);
  node.append(wrong);
  return node;
}

function field(key, control) {
  const more = element("span", { class: "more", id: `${control.id}-more` }, say(`${key}More`));
  control.setAttribute("aria-describedby", more.id);
  return element("div", { class: "field" }, element("label", { for: control.id }, say(key)), control, more);
}

function read(system, numbers, detail) {
  const values = numbers.map(({ name, input }) => [name, input.value === "" ? null : Number(input.value)]);
  return { system: system.value.trim(), detail: detail.value, ...Object.fromEntries(values) };
}
