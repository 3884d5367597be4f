/** The page: it joins the composer, the messages, the list, the store and the server. */

import { Api } from "./api.js";
import { ChatView } from "./chat_view.js";
import { Composer, isTouched } from "./composer.js";
import {
  fileStem,
  hasUnfinished,
  interruptAnswers,
  jsonFile,
  lastUsage,
  markdownFile,
  newConversation,
  newMessage,
  titleOf,
} from "./conversation.js";
import { ConversationList } from "./conversation_list.js";
import { Conversations } from "./conversations.js";
import { element, icon, saveFile } from "./element.js";
import { askForKey } from "./key_dialog.js";
import { isOfInputMethod } from "./keys.js";
import { announce, notice } from "./notices.js";
import { keepChoice, KeyKeeper, readChoice, readSettings, readTheme, useTheme } from "./preferences.js";
import { openSettings } from "./settings_dialog.js";
import { browserLanguage, count, currentLanguage, fillStrings, say, useLanguage } from "./strings.js";
import { takeFiles } from "./taken_files.js";
import { runTurn } from "./turn.js";
import { Turns } from "./turns.js";
import { redrawAll } from "./waveform.js";

const SAVE_EVERY_MS = 700; // while an answer grows; a page that goes away has no time to write
const POLL_MS = 2000; // while the server is not ready
const FULL_SHARE = 0.85; // of the context, from where on its use is shown as a warning

/** Everything there is one of. */
class Page {
  #conversations = new Conversations();
  #api = new Api(new KeyKeeper(), askForKey);
  #open = newConversation(readSettings());
  #turns = new Turns();
  #models = [];
  #list;
  #chat;
  #composer;

  constructor() {
    const transcribe = (blob, name) => this.#api.transcribe(blob, name, this.#model());
    this.#composer = new Composer(document.getElementById("composer"), {
      onSend: (takeMessage) => this.#send(takeMessage),
      onStop: () => this.#stop(),
      transcribe,
    });
    this.#chat = new ChatView(
      {
        transcribe,
        readMedium: (id) => this.#conversations.readMedium(id),
        onEdit: (message, text) => this.#replaceFrom(message, 2, newMessage("user", text, message.media)),
        onAgain: (answer) => this.#replaceFrom(answer, 1),
        onTranscript: (medium) => this.#conversations.saveThatHas(medium),
      },
      [
        { icon: "picture", key: "tryPicture", action: () => this.#try("describePicture", "image/*") },
        {
          icon: "wave",
          key: "trySound",
          action: () => this.#try("describeSound", "audio/*,.m4a,.opus,.flac,.ogg,.webm"),
        },
        { icon: "microphone", key: "trySpeak", action: () => this.#composer.record() },
        { icon: "text", key: "tryWrite", action: () => this.#composer.suggest(say("writeExample")) },
      ],
    );
    this.#list = new ConversationList({
      onOpen: (conversation) => this.#show(conversation),
      onRename: (conversation, title) => this.#rename(conversation, title),
      onSaveMarkdown: (conversation) => saveFile(markdownFile(conversation), `${fileStem(conversation)}.md`),
      onSaveJson: async (conversation) =>
        saveFile(
          await jsonFile(conversation, (id) => this.#conversations.readMedium(id)),
          `${fileStem(conversation)}.json`,
        ),
      onRemove: (conversation) => this.#remove(conversation),
    });
    this.#bindButtons();
    this.#bindKeys();
    takeFiles(document.getElementById("conversation"), (files) => this.#composer.addFiles(files));
  }

  /** Read what is kept, show it, and wait for the server. */
  async start() {
    this.#useLanguage(readChoice("language", browserLanguage()));
    if (!(await this.#conversations.open())) notice(say("notKept"));
    for (const conversation of this.#conversations.all.filter(hasUnfinished)) {
      if (!(await this.#turns.look(conversation.id))) interruptAnswers(conversation); // a page went away meanwhile
    }
    this.#turns.onChange = () => this.#showHead();
    this.#turns.onEndElsewhere = (id) => this.#endAnswers(id);
    this.#conversations.onMerge = (conversation, changed) => this.#showMerged(conversation, changed);
    this.#conversations.onGone = (conversation) => this.#leave(conversation);
    const kept = this.#conversations.all.find(({ id }) => id === window.location.hash.slice(1));
    this.#show(kept ?? this.#open);
    document.documentElement.dataset.ready = "true";
    await this.#awaitServer();
  }

  async #awaitServer() {
    const line = document.getElementById("server-state");
    for (;;) {
      const state = await this.#api.health();
      line.hidden = state === "ready";
      if (state === "ready") break;
      line.textContent = say(state);
      await new Promise((resolve) => {
        setTimeout(resolve, POLL_MS);
      });
    }
    await this.#listModels();
  }

  async #listModels() {
    try {
      this.#models = await this.#api.models();
    } catch {
      /* without a key there is no list; it is fetched again after an answer */
    }
    const select = document.getElementById("model");
    select.replaceChildren(...this.#models.map(({ id }) => element("option", { value: id }, id)));
    select.hidden = this.#models.length < 2;
    select.value = this.#model();
    this.#showContext();
  }

  #model() {
    const chosen = readChoice("model", null);
    return (this.#models.find(({ id }) => id === chosen) ?? this.#models[0])?.id ?? null;
  }

  #show(conversation) {
    this.#open = conversation;
    const isKept = conversation.messages.length > 0;
    window.history.replaceState(null, "", isKept ? `#${conversation.id}` : window.location.pathname);
    this.#chat.show(conversation);
    this.#showHead();
    document.getElementById("page").classList.remove("shows-sidebar");
    // a turn keeps media before the message that names them
    if (isKept && !this.#turns.isTaken(conversation.id)) this.#conversations.sweep(conversation);
    if (!isTouched()) this.#composer.focus();
  }

  /** Everything outside the messages that depends on the open conversation. */
  #showHead() {
    const title = titleOf(this.#open);
    document.getElementById("conversation-title").textContent = title;
    document.title = this.#open.messages.length > 0 ? `${title} · Tianquan` : "Tianquan";
    this.#list.show(this.#conversations.all, this.#open.id);
    this.#composer.setBusy(this.#turns.isHere(this.#open.id));
    document.getElementById("busy-elsewhere").hidden = !this.#turns.isElsewhere(this.#open.id);
    this.#showContext();
  }

  #showContext() {
    const line = document.getElementById("context");
    const usage = lastUsage(this.#open);
    const size = this.#models.find(({ id }) => id === this.#model())?.maxModelLen ?? null;
    if (usage === null) line.textContent = "";
    else if (size === null) line.textContent = say("contextUsedOnly", { used: count(usage.total_tokens) });
    else line.textContent = say("contextUsed", { used: count(usage.total_tokens), size: count(size) });
    line.classList.toggle("is-full", usage !== null && size !== null && usage.total_tokens > FULL_SHARE * size);
  }

  async #send(takeMessage) {
    const conversation = this.#open;
    await this.#takeTurn(conversation, async (signal) => {
      const taken = await takeMessage(signal);
      if (taken === null) return;
      const media = taken.attachments.map(({ blob, shrunkFrom, isCompressed, ...medium }) => medium);
      await this.#conversations.writeMedia(conversation, taken.attachments);
      const message = newMessage("user", taken.text, media);
      conversation.messages.push(message);
      this.#conversations.add(conversation);
      if (conversation === this.#open) {
        window.history.replaceState(null, "", `#${conversation.id}`);
        this.#chat.append(message);
      }
      await this.#answer(conversation, signal);
    });
  }

  /** Take the turn in a conversation, begin with what all tabs have made of it, and do something to it. */
  async #takeTurn(conversation, work) {
    const isTaken = await this.#turns.take(conversation.id, async (signal) => {
      if (this.#conversations.has(conversation)) await this.#conversations.follow(conversation.id);
      if (!signal.aborted) await work(signal);
    });
    if (isTaken) return;
    this.#turns.look(conversation.id);
    notice(say("busyElsewhere"));
  }

  /** Let the model answer the last message of a conversation. */
  async #answer(conversation, signal) {
    const answer = newMessage("assistant", "");
    const question = conversation.messages.at(-1);
    conversation.messages.push(answer);
    conversation.updatedMs = Date.now();
    if (conversation === this.#open) {
      this.#chat.append(answer, question);
      this.#chat.follow();
    }
    this.#showHead();
    await this.#conversations.save(conversation);
    announce(say("answerBegins"));
    let savedMs = Date.now();
    await runTurn(conversation, answer, {
      api: this.#api,
      model: this.#model(),
      readMedium: (id) => this.#conversations.readMedium(id),
      signal,
      onChange: () => {
        this.#chat.update(answer);
        if (Date.now() - savedMs < SAVE_EVERY_MS) return;
        savedMs = Date.now();
        this.#conversations.save(conversation);
      },
    });
    await this.#conversations.save(conversation);
    if (conversation === this.#open) this.#endAnswer(answer);
  }

  #endAnswer(answer) {
    if (answer.text !== "") announce(answer.text);
    if (answer.error && [0, 503].includes(answer.error.status)) this.#awaitServer();
    else if (!answer.error && this.#models.length === 0) this.#listModels();
  }

  /** Interrupt what another tab has left without an end: it was closed. */
  async #endAnswers(id) {
    await this.#conversations.follow(id);
    const conversation = this.#conversations.all.find((other) => other.id === id);
    if (conversation === undefined || this.#turns.isTaken(id)) return;
    this.#showMerged(conversation, interruptAnswers(conversation));
  }

  /** Show what another tab did to a conversation. */
  #showMerged(conversation, changed) {
    if (conversation === this.#open) this.#chat.refresh(conversation, changed);
    this.#showHead();
    this.#turns.look(conversation.id);
  }

  /** A conversation was deleted in another tab. */
  #leave(conversation) {
    this.#turns.stop(conversation.id);
    if (conversation === this.#open) this.#show(newConversation(readSettings()));
    else this.#showHead();
  }

  #stop() {
    this.#turns.stop(this.#open.id);
  }

  /**
   * Take a message and all after it away, which undo brings back, and let the model answer what is then the last.
   * @param {import("./conversation.js").Message} message - where to begin.
   * @param {number} numExpected - how many messages nobody misses.
   * @param {import("./conversation.js").Message} [other] - takes its place.
   */
  #replaceFrom(message, numExpected, other) {
    const conversation = this.#open;
    return this.#takeTurn(conversation, async (signal) => {
      const at = conversation.messages.indexOf(message);
      if (at === -1) return; // another tab has taken it away
      if (conversation.messages.length - at > numExpected) this.#offerUndo(conversation);
      conversation.messages.splice(at, Infinity, ...(other === undefined ? [] : [other]));
      if (conversation === this.#open) this.#chat.show(conversation);
      await this.#answer(conversation, signal);
    });
  }

  #offerUndo(conversation) {
    const bringBack = this.#conversations.remember(conversation);
    const undo = async () => {
      await bringBack();
      if (conversation === this.#open) this.#show(conversation);
    };
    notice(say("laterRemoved"), { label: say("undo"), action: () => this.#takeTurn(conversation, undo) });
  }

  #rename(conversation, title) {
    conversation.title = title || null;
    this.#conversations.save(conversation);
    this.#showHead();
  }

  async #remove(conversation) {
    this.#turns.stop(conversation.id);
    const title = titleOf(conversation);
    const removing = this.#conversations.remove(conversation);
    this.#leave(conversation);
    const bringBack = await removing;
    const undo = async () => {
      await bringBack();
      this.#show(conversation);
    };
    notice(say("removed", { title }), { label: say("undo"), action: undo });
  }

  #try(key, accept) {
    this.#composer.suggest(say(key));
    this.#composer.choose(accept);
  }

  #useLanguage(language) {
    useLanguage(language);
    fillStrings();
    this.#composer.useLanguage();
    this.#showTheme();
    this.#showHead();
  }

  #showTheme() {
    const names = { system: "themeSystem", light: "themeLight", dark: "themeDark" };
    const label = say("switchTheme", { theme: say(names[readTheme()]) });
    const button = document.getElementById("switch-theme");
    button.setAttribute("aria-label", label);
    button.title = label;
  }

  #bindButtons() {
    for (const button of document.querySelectorAll("[data-icon]")) {
      button.prepend(icon(button.dataset.icon));
      if (button.dataset.text) button.append(element("span", { class: "label" }));
    }
    const on = (id, action) => document.getElementById(id).addEventListener("click", action);
    const page = document.getElementById("page");
    const showSidebar = (isShown) => {
      page.classList.toggle("shows-sidebar", isShown);
      document.getElementById(isShown ? "close-sidebar" : "open-sidebar").focus();
    };
    on("open-sidebar", () => showSidebar(true));
    on("close-sidebar", () => showSidebar(false));
    on("backdrop", () => showSidebar(false));
    on("new-conversation", () => this.#show(newConversation(readSettings())));
    on("open-settings", () =>
      openSettings(this.#open.settings, (settings) => {
        this.#open.settings = settings;
        keepChoice("settings", settings);
        this.#conversations.save(this.#open);
      }),
    );
    on("switch-language", () => {
      const language = currentLanguage() === "en" ? "zh" : "en";
      keepChoice("language", language);
      this.#useLanguage(language);
      this.#chat.show(this.#open);
    });
    on("switch-theme", () => {
      const order = ["system", "light", "dark"];
      useTheme(order[(order.indexOf(readTheme()) + 1) % order.length]);
      this.#showTheme();
      redrawAll();
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
    document.getElementById("model").addEventListener("change", (event) => {
      keepChoice("model", event.target.value);
      this.#showContext();
    });
  }

  #bindKeys() {
    document.addEventListener("keydown", (event) => {
      if (isOfInputMethod(event) || event.defaultPrevented) return;
      if (document.querySelector("dialog[open], [popover]:popover-open")) return;
      if (event.key === "Escape") {
        if (this.#composer.recording.isActive) this.#composer.recording.cancel();
        else if (document.getElementById("page").classList.contains("shows-sidebar"))
          document.getElementById("close-sidebar").click();
        else this.#stop();
      } else if (event.altKey && event.code === "KeyN") {
        event.preventDefault();
        this.#show(newConversation(readSettings()));
      } else if (event.key === "ArrowUp" && event.target === this.#composer.question && event.target.value === "") {
        const last = this.#open.messages.findLast(({ role }) => role === "user");
        if (last && !this.#turns.isTaken(this.#open.id)) {
          event.preventDefault();
          this.#chat.edit(last);
        }
      }
    });
  }
}

new Page().start();
