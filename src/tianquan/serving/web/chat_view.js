/** The messages of the conversation that is open, and where the page is scrolled to. */

import { AnswerView, UserView } from "./message_view.js";
import { element, icon } from "./element.js";
import { say } from "./strings.js";

const NEAR_END = 90; // pixels from the end that still count as reading the newest

/** The middle of the page. */
export class ChatView {
  #views = new Map();
  #actions;
  #suggestions;
  #changed = new Set(); // answers to update before the next frame
  #isFollowing = true;

  /**
   * @param {import("./message_view.js").MessageActions} actions - what the page does with messages.
   * @param {Array<{icon: string, key: string, action: () => void}>} suggestions - shown where there is no message yet.
   */
  constructor(actions, suggestions) {
    this.#actions = actions;
    this.#suggestions = suggestions;
    this.scroller = document.getElementById("messages");
    this.column = document.getElementById("column");
    this.toEnd = document.getElementById("to-end");
    this.toEnd.addEventListener("click", () => this.follow());
    this.scroller.addEventListener(
      "scroll",
      () => {
        const { scrollHeight, scrollTop, clientHeight } = this.scroller;
        this.#isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_END;
        this.toEnd.hidden = this.#isFollowing || this.#views.size === 0;
      },
      { passive: true },
    );
    const sizes = new ResizeObserver(() => this.#keepEnd());
    sizes.observe(this.column);
    sizes.observe(this.scroller); // the composer grows into it
  }

  /**
   * Show a conversation from its beginning to its end.
   * @param {import("./conversation.js").Conversation} conversation - the conversation.
   */
  show(conversation) {
    this.#views.clear();
    this.column.replaceChildren();
    conversation.messages.forEach((message, n) => this.append(message, conversation.messages[n - 1]));
    this.follow();
    if (conversation.messages.length > 0) return;
    this.#isFollowing = false; // a welcome is read from its beginning
    this.column.append(this.#welcome());
    this.scroller.scrollTop = 0;
  }

  /**
   * Add a message at the end.
   * @param {import("./conversation.js").Message} message - the message.
   * @param {import("./conversation.js").Message} [previous] - the one before it.
   */
  append(message, previous) {
    if (this.#views.size === 0) this.column.replaceChildren();
    this.column.append(this.#addView(message, previous).node);
  }

  /**
   * Show what another tab did to the conversation on the page; what it left alone stays as it is.
   * @param {import("./conversation.js").Conversation} conversation - the conversation.
   * @param {Set<string>} changed - ids of messages that are not what they were.
   */
  refresh(conversation, changed) {
    const { messages } = conversation;
    if (this.#views.size === 0 || messages.length === 0) {
      if (this.#views.size !== messages.length) this.show(conversation);
      return;
    }
    const ids = new Set(messages.map(({ id }) => id));
    for (const [id, view] of this.#views) {
      if (ids.has(id)) continue;
      view.node.remove();
      this.#views.delete(id);
    }
    messages.forEach((message, n) => {
      const view = this.#views.get(message.id) ?? this.#addView(message, messages[n - 1]);
      if (changed.has(message.id)) view.update();
      if (this.column.children[n] !== view.node) this.column.insertBefore(view.node, this.column.children[n] ?? null);
    });
    this.#keepEnd();
  }

  #addView(message, previous) {
    const view =
      message.role === "user"
        ? new UserView(message, this.#actions)
        : new AnswerView(message, this.#actions, previous?.media ?? []);
    this.#views.set(message.id, view);
    return view;
  }

  /**
   * Show what came in since; several calls before the next frame are one.
   * @param {import("./conversation.js").Message} message - a message that may be on the page.
   */
  update(message) {
    if (!this.#views.has(message.id)) return;
    if (this.#changed.size === 0) {
      // a page in the background has no frames, but what is read out and copied must be there
      const later = document.hidden ? (f) => setTimeout(f, 200) : requestAnimationFrame;
      later(() => {
        for (const id of this.#changed) this.#views.get(id)?.update();
        this.#changed.clear();
        this.#keepEnd();
      });
    }
    this.#changed.add(message.id);
  }

  /** @param {import("./conversation.js").Message} message - to let the user change. */
  edit(message) {
    this.#views.get(message.id)?.edit();
  }

  /** Go to the newest message and stay there. */
  follow() {
    this.#isFollowing = true;
    this.toEnd.hidden = true;
    this.#keepEnd();
  }

  #keepEnd() {
    if (this.#isFollowing) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #welcome() {
    return element(
      "section",
      { class: "welcome" },
      element("img", { src: new URL("star.svg", import.meta.url), alt: "", width: "56", height: "56" }),
      element("h2", {}, say("welcome")),
      element("p", {}, say("welcomeMore")),
      element(
        "div",
        { class: "suggestions" },
        ...this.#suggestions.map(({ icon: name, key, action }) =>
          element(
            "button",
            { type: "button", class: "suggestion", onclick: action },
            icon(name),
            element("span", { class: "suggestion-title" }, say(key)),
            element("span", { class: "suggestion-more" }, say(`${key}More`)),
          ),
        ),
      ),
    );
  }
}
