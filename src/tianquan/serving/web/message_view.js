/** One message on the page: a user's, with pictures and sound, or an answer, which may still be growing. */

import { answerDetails } from "./answer_details.js";
import { describeError } from "./api.js";
import { element, iconButton } from "./element.js";
import { isOfInputMethod } from "./keys.js";
import { copyText, MarkdownView } from "./markdown_view.js";
import { pictureThumbnail, soundBlock, videoBlock } from "./media_view.js";
import { count, say } from "./strings.js";

/**
 * @typedef {{readMedium: (id: string) => Promise<?Blob>, transcribe: (blob: Blob, name: string) => Promise<string>,
 *            onEdit: (message: object, text: string) => void, onAgain: (message: object) => void,
 *            onTranscript: (medium: object) => void}} MessageActions
 */

function copyButton(text) {
  const button = iconButton("copy", say("copy"), () => copyText(text, button));
  return button;
}

/** What a user said. */
export class UserView {
  #message;
  #actions;

  /**
   * @param {import("./conversation.js").Message} message - what is shown.
   * @param {MessageActions} actions - what the page does.
   */
  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    this.node = element("article", { class: "message user", "aria-label": say("you") });
    this.#show();
  }

  /** Show what another tab has added to the message; a text that is being changed is left alone. */
  update() {
    if (this.node.querySelector(".editor") === null) this.#show();
  }

  /** Let the user change the text. */
  edit() {
    const area = element("textarea", { class: "edit-area", rows: "2", dir: "auto", "aria-label": say("editLabel") });
    area.value = this.#message.text;
    const submit = () => {
      if (area.value.trim() !== "" || this.#message.media.length > 0)
        this.#actions.onEdit(this.#message, area.value.trim());
    };
    area.addEventListener("keydown", (event) => {
      if (isOfInputMethod(event)) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#show();
      } else if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        submit();
      }
    });
    const fit = () => {
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight}px`;
    };
    area.addEventListener("input", fit);
    this.node.replaceChildren(
      this.#media(),
      element(
        "div",
        { class: "editor" },
        area,
        element(
          "div",
          { class: "editor-bar" },
          element("button", { type: "button", class: "text-button", onclick: () => this.#show() }, say("cancel")),
          element("button", { type: "button", class: "strong-button", onclick: submit }, say("saveEdit")),
        ),
      ),
    );
    fit();
    area.focus();
  }

  #show() {
    const { text } = this.#message;
    this.node.replaceChildren(
      this.#media(),
      ...(text ? [element("div", { class: "bubble", dir: "auto" }, text)] : []),
      element(
        "div",
        { class: "actions" },
        text && copyButton(text),
        iconButton("edit", say("edit"), () => this.edit()),
      ),
    );
  }

  #media() {
    const row = element("div", { class: "media" });
    for (const medium of this.#message.media) {
      const place = element("div", { class: `medium is-${medium.kind}` });
      row.append(place);
      this.#actions.readMedium(medium.id).then((blob) => {
        if (blob === null) place.textContent = medium.name;
        else if (medium.kind === "picture") place.append(pictureThumbnail(medium, blob));
        else if (medium.kind === "video") place.append(videoBlock(medium, blob));
        else place.append(soundBlock(medium, blob, this.#actions.transcribe, this.#actions.onTranscript));
      });
    }
    return row;
  }
}

/** What the model said. */
export class AnswerView {
  #message;
  #actions;
  #hears;
  #text = new MarkdownView();
  #state = element("div", { class: "answer-state" });
  #foot = element("div", { class: "answer-foot" });
  #timer = null;
  #begunMs = Date.now();

  /**
   * @param {import("./conversation.js").Message} message - what is shown.
   * @param {MessageActions} actions - what the page does.
   * @param {import("./conversation.js").Medium[]} media - what the question came with, said while one waits.
   */
  constructor(message, actions, media) {
    this.#message = message;
    this.#actions = actions;
    this.#hears = media.at(-1)?.kind;
    this.node = element(
      "article",
      { class: "message answer", "aria-label": say("assistant") },
      this.#text.node,
      this.#state,
      this.#foot,
    );
    this.update();
  }

  /** Show what the message holds by now. */
  update() {
    const { text, finish } = this.#message;
    const isWriting = finish === null;
    this.#text.show(text, isWriting);
    this.node.classList.toggle("is-writing", isWriting && text !== "");
    this.node.setAttribute("aria-busy", String(isWriting));
    if (isWriting && text === "") this.#wait();
    else this.#showEnd();
  }

  /** On a processor a picture takes seconds: say what is going on, and for how long. */
  #wait() {
    if (this.#timer !== null) return;
    const key = { picture: "waitingPicture", sound: "waitingSound" }[this.#hears] ?? "waiting";
    const seconds = element("span", { class: "waiting-time" });
    const show = () => {
      if (!this.node.isConnected && this.#timer !== null) clearInterval(this.#timer);
      const passed = Math.floor((Date.now() - this.#begunMs) / 1000);
      seconds.textContent = passed >= 2 ? `${count(passed)} s` : "";
    };
    const dots = element("span", { class: "dots", "aria-hidden": "true" }, element("i"), element("i"), element("i"));
    this.#state.replaceChildren(element("span", { class: "waiting" }, dots, say(key), seconds));
    this.#timer = setInterval(show, 1000);
  }

  #showEnd() {
    clearInterval(this.#timer);
    const { finish, error, text } = this.#message;
    this.#state.replaceChildren(...this.#endings(finish, error, text));
    if (finish === null) this.#foot.replaceChildren();
    else this.#showFoot();
  }

  #endings(finish, error, text) {
    if (error) return [this.#errorBox(error)];
    const key =
      { stopped: "stopped", interrupted: "interrupted", length: "cutAtLength" }[finish] ??
      (finish !== null && text.trim() === "" ? "emptyAnswer" : null);
    return key === null ? [] : [element("span", { class: "ending" }, say(key))];
  }

  #errorBox(error) {
    return element(
      "div",
      { class: "error", role: "alert" },
      element("p", {}, describeError(error)),
      error.detail ? element("p", { class: "error-detail" }, error.detail) : null,
      element(
        "button",
        { type: "button", class: "strong-button", onclick: () => this.#actions.onAgain(this.#message) },
        say("tryAgain"),
      ),
    );
  }

  #showFoot() {
    const { text, error } = this.#message;
    const copy = text && copyButton(text);
    const again = error
      ? null
      : iconButton("again", say("regenerate"), () => this.#actions.onAgain(this.#message), "quiet again");
    this.#foot.replaceChildren(
      element("div", { class: "actions" }, copy, again),
      ...[answerDetails(this.#message)].filter(Boolean),
    );
  }
}
