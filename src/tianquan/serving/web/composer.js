/** Where a message is written: text, pictures and sound, sent together. */

import { newId } from "./conversation.js";
import { element, icon, iconButton } from "./element.js";
import { isOfInputMethod } from "./keys.js";
import { isVideo, pictureThumbnail, soundBlock, videoBlock } from "./media_view.js";
import { notice } from "./notices.js";
import { readPicture } from "./picture.js";
import { RecordingBar } from "./recording_bar.js";
import { readSound, soundType } from "./sound.js";
import { say } from "./strings.js";

const ACCEPT = "image/*,audio/*,video/*,.m4a,.opus,.flac,.ogg,.webm,.mkv,.ts";

/**
 * @typedef {import("./conversation.js").Medium & {blob: Blob}} Attachment
 *
 * Gives the message once everything in it is read, and empties the composer; null, and all stays, where the signal says
 * stop before that or a file cannot be read.
 * @typedef {(signal: AbortSignal) => Promise<?{text: string, attachments: Attachment[]}>} TakeMessage
 *
 * @typedef {{onSend: (take: TakeMessage) => Promise<void>, onStop: () => void,
 *            transcribe: (blob: Blob, name: string) => Promise<string>}} ComposerActions
 */

/** @returns {boolean} whether the page is used with fingers, and focus would raise a keyboard over it. */
export function isTouched() {
  return window.matchMedia("(hover: none) and (pointer: coarse)").matches;
}

/** The form at the foot of the page. */
export class Composer {
  #actions;
  #attachments = []; // of {node, ready: Promise<?Attachment>}
  #isBusy = false;
  #sending = null; // {written: string, reading: Promise, isTaken: boolean}, until the message is handed over

  /**
   * @param {HTMLFormElement} form - from index.html.
   * @param {ComposerActions} actions - what the page does.
   */
  constructor(form, actions) {
    this.#actions = actions;
    this.form = form;
    this.tray = element("ul", { class: "tray" });
    this.question = element("textarea", { id: "question", rows: "1", autocomplete: "off", dir: "auto" });
    this.files = element("input", {
      type: "file",
      id: "files",
      accept: ACCEPT,
      multiple: true,
      class: "unseen",
      tabindex: "-1",
    });
    this.attach = iconButton("attach", "", () => this.choose(ACCEPT));
    this.microphone = iconButton("microphone", "", () => this.record());
    this.go = element("button", { type: "submit", class: "go" });
    this.recording = new RecordingBar(
      (sound) => this.#addSound(sound),
      () => this.focus(),
    );
    const bar = element(
      "div",
      { class: "composer-bar" },
      this.attach,
      this.microphone,
      element("span", { class: "spring" }),
      this.go,
    );
    form.append(this.tray, this.recording.node, this.question, bar, this.files);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#isBusy) actions.onStop();
      else this.send();
    });
    this.question.addEventListener("keydown", (event) => this.#onKey(event));
    this.question.addEventListener("input", () => this.#fit());
    this.files.addEventListener("change", () => {
      this.addFiles([...this.files.files]);
      this.files.value = ""; // the same file may be chosen again
    });
    this.useLanguage();
  }

  /** Show the strings in the page's language. */
  useLanguage() {
    for (const [button, key] of [
      [this.attach, "attach"],
      [this.microphone, "record"],
    ]) {
      button.setAttribute("aria-label", say(key));
      button.title = say(key);
    }
    this.files.setAttribute("aria-label", say("attach"));
    this.question.setAttribute("aria-label", say("question"));
    this.recording.useLanguage();
    this.#show();
  }

  /**
   * Turn the send button into a stop button and back.
   * @param {boolean} isBusy - whether an answer is being written.
   */
  setBusy(isBusy) {
    this.#isBusy = isBusy;
    this.#show();
  }

  /** Put the cursor into the text. */
  focus() {
    this.#show();
    this.question.focus();
  }

  /**
   * Write a text for the user to send or to change.
   * @param {string} text - the text.
   */
  suggest(text) {
    if (this.question.value.trim() === "") this.question.value = text;
    this.#fit();
    this.focus();
  }

  /**
   * Open the browser's dialog to choose files.
   * @param {string} accept - which kinds.
   */
  choose(accept) {
    this.files.accept = accept;
    this.files.click();
  }

  /** Begin to record. */
  async record() {
    await this.recording.start();
    this.#show();
  }

  /**
   * Take files that were dropped, pasted or chosen.
   * @param {File[]} files - pictures, sound and video; anything else is refused in words.
   */
  addFiles(files) {
    for (const file of files) {
      const name = file.name || say("pastedName");
      if (isVideo(file)) this.#add(name, Promise.resolve({ kind: "video", blob: file }));
      else if (soundType(file) !== null)
        this.#add(
          name,
          readSound(file).then((sound) => ({ kind: "sound", ...sound })),
        );
      else if (file.type.startsWith("image/") || /\.(png|jpe?g|webp|gif|bmp|avif)$/i.test(name)) {
        this.#add(
          name,
          readPicture(file).then(
            (picture) => ({ kind: "picture", ...picture }),
            () => {
              throw new Error(say("errorPicture", { name }));
            },
          ),
        );
      } else notice(say("errorKind", { name }));
    }
    if (!isTouched()) this.focus();
  }

  #addSound(sound) {
    this.#add(say("recordingName"), Promise.resolve({ kind: "sound", ...sound }));
    this.focus();
  }

  #add(name, reading) {
    const node = element(
      "li",
      { class: "attachment is-reading" },
      element("span", { class: "reading" }, say("reading", { name })),
    );
    const item = { node, ready: null };
    const remove = () => {
      this.#attachments = this.#attachments.filter((other) => other !== item);
      node.remove();
      this.#show();
    };
    const removeButton = iconButton(
      "close",
      say("removeAttachment", { name }),
      () => {
        remove();
        this.focus();
      },
      "quiet remove",
    );
    item.ready = reading
      .then((medium) => {
        const attachment = { id: newId(), name, ...medium };
        node.className = `attachment is-${medium.kind}`;
        node.replaceChildren(...this.#preview(attachment), removeButton);
        return attachment;
      })
      .catch((error) => {
        remove();
        notice(error.message);
        return null;
      });
    this.#attachments.push(item);
    this.tray.append(node);
    this.#show();
  }

  #preview(attachment) {
    if (attachment.kind === "video") return [videoBlock(attachment, attachment.blob)];
    if (attachment.kind === "sound")
      return [soundBlock(attachment, attachment.blob, this.#actions.transcribe, () => {})];
    const { shrunkFrom, isCompressed, width, height } = attachment;
    if (shrunkFrom) notice(say("pictureShrunk", { from: shrunkFrom, to: `${width}×${height}` }));
    else if (isCompressed) notice(say("pictureShrunkFile"));
    return [pictureThumbnail(attachment, attachment.blob)];
  }

  /** Hand the message over; what the page does with it begins before anything in it is read. */
  async send() {
    if (this.#sending !== null || this.#isBusy || this.#isEmpty()) return;
    const sending = { written: this.question.value, reading: this.#read(), isTaken: false };
    this.#sending = sending;
    this.#write(""); // now: later it would end what an input method has begun meanwhile
    try {
      await this.#actions.onSend((signal) => this.#take(sending, signal));
    } finally {
      if (!sending.isTaken) this.#write(sending.written + this.question.value);
      this.#endSending(sending);
    }
  }

  #write(text) {
    this.question.value = text;
    this.#fit();
  }

  async #read() {
    await this.recording.finish();
    const items = this.#attachments;
    return { items, read: await Promise.all(items.map((item) => item.ready)) };
  }

  async #take(sending, signal) {
    const { items, read } = await sending.reading;
    if (signal.aborted) return null;
    if (read.includes(null)) {
      notice(say("notSent"));
      return null;
    }
    const attachments = read.filter((attachment, n) => this.#attachments.includes(items[n])); // the others were removed
    const { written } = sending;
    if (written.trim() === "" && attachments.length === 0) return null;
    items.forEach(({ node }) => node.remove());
    this.#attachments = this.#attachments.filter((item) => !items.includes(item));
    sending.isTaken = true;
    this.#endSending(sending);
    return { text: written.trim(), attachments };
  }

  #endSending(sending) {
    if (this.#sending === sending) this.#sending = null;
    this.#show();
  }

  #isEmpty() {
    return this.question.value.trim() === "" && this.#attachments.length === 0 && !this.recording.isActive;
  }

  #onKey(event) {
    if (isOfInputMethod(event) || event.key !== "Enter" || event.shiftKey) return;
    if (isTouched()) return; // a phone's keyboard has no other way to a new line, and the button is under the thumb
    event.preventDefault();
    this.send();
  }

  #fit() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight}px`;
    this.#show();
  }

  #show() {
    const label = say(this.#isBusy ? "stop" : "send");
    this.question.placeholder = say(this.#attachments.length > 0 ? "askMedia" : "ask");
    if (this.question.value === "") this.question.style.height = "auto";
    this.tray.hidden = this.#attachments.length === 0;
    this.go.disabled = !this.#isBusy && (this.#sending !== null || this.#isEmpty());
    if (this.go.getAttribute("aria-label") === label) return;
    this.go.replaceChildren(icon(this.#isBusy ? "stop" : "send"));
    this.go.setAttribute("aria-label", label);
    this.go.title = label;
  }
}
