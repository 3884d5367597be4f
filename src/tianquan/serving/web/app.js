/** The page: it joins the composer, the messages, the list, the store and the server. */

import { Api } from "./api.js";
import { ChatView } from "./chat_view.js";
import { Composer, isTouched } from "./composer.js";
import { fileStem, jsonFile, lastUsage, markdownFile, newConversation, newMessage, titleOf } from "./conversation.js";
import { ConversationList } from "./conversation_list.js";
import { element, icon, saveFile } from "./element.js";
import { askForKey } from "./key_dialog.js";
import { announce, notice } from "./notices.js";
import { keepChoice, KeyKeeper, readChoice, readSettings, readTheme, useTheme } from "./preferences.js";
import { openSettings } from "./settings_dialog.js";
import { browserLanguage, count, currentLanguage, fillStrings, say, useLanguage } from "./strings.js";
import { Store } from "./store.js";
import { takeFiles } from "./taken_files.js";
import { runTurn } from "./turn.js";
import { redrawAll } from "./waveform.js";

const SAVE_EVERY_MS = 700; // while an answer grows; a page that goes away has no time to write
const POLL_MS = 2000; // while the server is not ready
const FULL_SHARE = 0.85; // of the context, from where on its use is shown as a warning

/** Everything there is one of. */
class Page {
  #store = new Store();
  #api = new Api(new KeyKeeper(), askForKey);
  #conversations = [];
  #open = newConversation(readSettings());
  #turns = new Map(); // conversation id -> AbortController of the answer that is being written
  #models = [];
  #list;
  #chat;
  #composer;

  constructor() {
    const transcribe = (blob, name) => this.#api.transcribe(blob, name, this.#model());
    this.#composer = new Composer(document.getElementById("composer"), {
      onSend: (text, attachments) => this.#send(text, attachments),
      onStop: () => this.#stop(),
      transcribe,
    });
    this.#chat = new ChatView(
      {
        transcribe,
        readMedium: (id) => this.#store.readMedium(id),
        onEdit: (message, text) => this.#edit(message, text),
        onAgain: (message) => this.#again(message),
        onTranscript: () => this.#save(this.#open),
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
        saveFile(await jsonFile(conversation, (id) => this.#store.readMedium(id)), `${fileStem(conversation)}.json`),
      onRemove: (conversation) => this.#remove(conversation),
    });
    this.#bindButtons();
    this.#bindKeys();
    takeFiles(document.getElementById("conversation"), (files) => this.#composer.addFiles(files));
  }

  /** Read what is kept, show it, and wait for the server. */
  async start() {
    this.#useLanguage(readChoice("language", browserLanguage()));
    if (!(await this.#store.open())) notice(say("notKept"));
    this.#store.onOther = (id) => this.#follow(id);
    this.#conversations = await this.#store.list();
    for (const message of this.#conversations.flatMap((conversation) => conversation.messages)) {
      if (message.finish === null) message.finish = "interrupted"; // the page went away while it was written
    }
    const kept = this.#conversations.find(({ id }) => id === window.location.hash.slice(1));
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
    if (isKept) this.#store.sweep(conversation).catch(() => {});
    if (!isTouched()) this.#composer.focus();
  }

  /** Everything outside the messages that depends on the open conversation. */
  #showHead() {
    const title = titleOf(this.#open);
    document.getElementById("conversation-title").textContent = title;
    document.title = this.#open.messages.length > 0 ? `${title} · Tianquan` : "Tianquan";
    this.#list.show(this.#conversations, this.#open.id);
    this.#composer.setBusy(this.#turns.has(this.#open.id));
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

  async #send(text, attachments) {
    const conversation = this.#open;
    const media = attachments.map(({ blob, shrunkFrom, isCompressed, ...medium }) => medium);
    await this.#keep(
      Promise.all(attachments.map(({ id, blob }) => this.#store.writeMedium(conversation.id, id, blob))),
    );
    const message = newMessage("user", text, media);
    conversation.messages.push(message);
    if (!this.#conversations.includes(conversation)) this.#conversations.push(conversation);
    window.history.replaceState(null, "", `#${conversation.id}`);
    this.#chat.append(message);
    await this.#answer(conversation);
  }

  /** Let the model answer the last message of a conversation. */
  async #answer(conversation) {
    const answer = newMessage("assistant", "");
    const question = conversation.messages.at(-1);
    conversation.messages.push(answer);
    conversation.updatedMs = Date.now();
    if (conversation === this.#open) {
      this.#chat.append(answer, question);
      this.#chat.follow();
    }
    const controller = new AbortController();
    this.#turns.set(conversation.id, controller);
    this.#showHead();
    await this.#save(conversation);
    announce(say("answerBegins"));
    let savedMs = Date.now();
    try {
      await runTurn(conversation, answer, {
        api: this.#api,
        model: this.#model(),
        readMedium: (id) => this.#store.readMedium(id),
        signal: controller.signal,
        onChange: () => {
          this.#chat.update(answer);
          if (Date.now() - savedMs < SAVE_EVERY_MS) return;
          savedMs = Date.now();
          this.#save(conversation);
        },
      });
    } finally {
      if (this.#turns.get(conversation.id) === controller) this.#turns.delete(conversation.id);
    }
    if (!this.#conversations.includes(conversation)) return; // deleted meanwhile
    await this.#save(conversation);
    if (conversation === this.#open) this.#endAnswer(answer);
    this.#showHead();
  }

  #endAnswer(answer) {
    if (answer.text !== "") announce(answer.text);
    if (answer.error && [0, 503].includes(answer.error.status)) this.#awaitServer();
    else if (!answer.error && this.#models.length === 0) this.#listModels();
  }

  /** Take over what another tab did to a conversation; what is being answered here stays as it is. */
  async #follow(id) {
    const kept = await this.#store.read(id);
    if (this.#turns.has(id)) return;
    const own = this.#conversations.find((conversation) => conversation.id === id);
    if (kept === null) {
      this.#conversations = this.#conversations.filter((conversation) => conversation !== own);
      if (own === this.#open) this.#show(newConversation(readSettings()));
    } else if (own === undefined) {
      this.#conversations.push(kept);
    } else {
      Object.assign(own, kept);
      if (own === this.#open) this.#chat.show(own);
    }
    this.#showHead();
  }

  #stop() {
    this.#turns.get(this.#open.id)?.abort();
  }

  /** Send a changed message again; what came after it goes, and comes back with undo. */
  #edit(message, text) {
    const conversation = this.#open;
    const at = conversation.messages.indexOf(message);
    this.#cut(conversation, at, conversation.messages.length - at > 2);
    conversation.messages.push(newMessage("user", text, message.media));
    this.#chat.show(conversation);
    this.#answer(conversation);
  }

  #again(answer) {
    const conversation = this.#open;
    const at = conversation.messages.indexOf(answer);
    this.#cut(conversation, at, conversation.messages.length - at > 1);
    this.#chat.show(conversation);
    this.#answer(conversation);
  }

  #cut(conversation, at, losesTurns) {
    this.#turns.get(conversation.id)?.abort();
    const before = [...conversation.messages];
    conversation.messages.splice(at);
    if (!losesTurns) return;
    notice(say("laterRemoved"), {
      label: say("undo"),
      action: () => {
        this.#turns.get(conversation.id)?.abort();
        conversation.messages = before;
        this.#save(conversation);
        if (conversation === this.#open) this.#show(conversation);
      },
    });
  }

  #rename(conversation, title) {
    conversation.title = title || null;
    this.#save(conversation);
    this.#showHead();
  }

  async #remove(conversation) {
    this.#turns.get(conversation.id)?.abort();
    this.#conversations = this.#conversations.filter((other) => other !== conversation);
    const removed = await this.#keep(this.#store.remove(conversation));
    if (conversation === this.#open) this.#show(newConversation(readSettings()));
    else this.#showHead();
    notice(
      say("removed", { title: titleOf(conversation) }),
      removed && {
        label: say("undo"),
        action: async () => {
          await this.#keep(this.#store.restore(removed));
          this.#conversations.push(conversation);
          this.#show(conversation);
        },
      },
    );
  }

  #save(conversation) {
    if (!this.#conversations.includes(conversation)) return Promise.resolve();
    return this.#keep(this.#store.write(conversation));
  }

  /** Wait for the store, and say so where the browser could not keep something. */
  async #keep(promise) {
    try {
      return await promise;
    } catch {
      notice(say("keepFailed"));
      return undefined;
    }
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
        this.#save(this.#open);
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
      if (event.defaultPrevented || document.querySelector("dialog[open], [popover]:popover-open")) return;
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
        if (last && !this.#turns.has(this.#open.id)) {
          event.preventDefault();
          this.#chat.edit(last);
        }
      }
    });
  }
}

new Page().start();
