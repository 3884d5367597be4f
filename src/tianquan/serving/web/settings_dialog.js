/** How answers are chosen: the system prompt, sampling, and how closely pictures are looked at. */

import { element, iconButton } from "./element.js";
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
 * Let the user change settings.
 * @param {import("./preferences.js").Settings} settings - as they are.
 * @param {(settings: import("./preferences.js").Settings) => void} onChange - hears of them when the dialog closes.
 */
export function openSettings(settings, onChange) {
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
    });
  };
  const form = element(
    "form",
    { method: "dialog" },
    element(
      "header",
      { class: "dialog-head" },
      element("h2", { id: "settings-title" }, say("settings")),
      iconButton("close", say("close"), () => dialog.close()),
    ),
    element("p", { class: "more" }, say("settingsMore")),
    field("systemPrompt", system),
    element("div", { class: "number-fields" }, ...numbers.map(({ key, input }) => field(key, input))),
    field("detail", detail),
    element(
      "div",
      { class: "dialog-bar" },
      element("button", { type: "button", class: "text-button", onclick: () => fill(DEFAULT_SETTINGS) }, say("reset")),
      element("button", { type: "submit", class: "strong-button" }, say("done")),
    ),
  );
  const dialog = element(
    "dialog",
    {
      class: "settings-dialog",
      "aria-labelledby": "settings-title",
      onclose: () => {
        dialog.remove();
        if (numbers.every(({ input }) => input.checkValidity())) onChange(read(system, numbers, detail));
      },
    },
    form,
  );
  fill(settings);
  document.body.append(dialog);
  dialog.showModal();
}

function numberInput({ name, low, high, step }) {
  const input = element("input", {
    id: `setting-${name}`,
    type: "number",
    min: low,
    max: high,
    step: step === "1" ? "1" : "any",
    placeholder: "–",
  });
  input.addEventListener("invalid", () => input.setCustomValidity(say("notInRange", { low, high })));
  input.addEventListener("input", () => input.setCustomValidity(""));
  return input;
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
