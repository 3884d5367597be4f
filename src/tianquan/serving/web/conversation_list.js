/** The list of conversations: open, rename, export, delete. */

import { titleOf } from "./conversation.js";
import { element, iconButton } from "./element.js";
import { isOfInputMethod } from "./keys.js";
import { openMenu } from "./menu.js";
import { say } from "./strings.js";

/**
 * @typedef {{onOpen: (conversation: object) => void, onRename: (conversation: object, title: string) => void,
 *            onSaveMarkdown: (conversation: object) => void, onSaveJson: (conversation: object) => void,
 *            onRemove: (conversation: object) => void}} ListActions
 */

/** The entries of the sidebar. */
export class ConversationList {
  #list = document.getElementById("conversation-list");
  #actions;
  #entries = new Map(); // conversation id -> Entry

  /** @param {ListActions} actions - what the page does. */
  constructor(actions) {
    this.#actions = actions;
  }

  /**
   * Show conversations, the newest first.
   * @param {import("./conversation.js").Conversation[]} conversations - those that have a message.
   * @param {string} openId - which is on the page.
   */
  show(conversations, openId) {
    const sorted = [...conversations].sort((a, b) => b.updatedMs - a.updatedMs);
    const ids = new Set(sorted.map(({ id }) => id));
    for (const [id, entry] of this.#entries) {
      if (ids.has(id)) continue;
      this.#entries.delete(id); // first, since a name being typed is given on when its input goes
      entry.node.remove();
    }
    const nodes = sorted.map((conversation) => {
      const { id } = conversation;
      if (!this.#entries.has(id)) this.#entries.set(id, new Entry(this.#actions));
      const entry = this.#entries.get(id);
      entry.show(conversation, id === openId);
      return entry.node;
    });
    this.#order(nodes);
  }

  /** Bring the entries into an order. One that has the focus would lose it if it were moved: the others move. */
  #order(nodes) {
    if (nodes.every((node, n) => node === this.#list.children[n])) return;
    const focused = nodes.findIndex((node) => node.contains(document.activeElement));
    if (focused > 0) nodes[focused].before(...nodes.slice(0, focused));
    this.#list.append(...nodes.slice(focused + 1));
  }
}

/** One conversation of the list. */
class Entry {
  #actions;
  #conversation = null;
  #name = element("button", {
    type: "button",
    class: "conversation-name",
    onclick: () => this.#actions.onOpen(this.#conversation),
  });
  #more = iconButton("more", "", () => this.#openMenu(), "quiet more");

  /** @param {ListActions} actions - what the page does. */
  constructor(actions) {
    this.#actions = actions;
    this.#more.setAttribute("aria-haspopup", "menu");
    this.node = element("li", {}, this.#name, this.#more);
  }

  /**
   * Show a conversation; a name that is being typed is left alone.
   * @param {import("./conversation.js").Conversation} conversation - always the same one.
   * @param {boolean} isOpen - whether it is on the page.
   */
  show(conversation, isOpen) {
    this.#conversation = conversation;
    const title = titleOf(conversation);
    this.#name.textContent = title;
    this.#name.title = title;
    if (isOpen) this.#name.setAttribute("aria-current", "page");
    else this.#name.removeAttribute("aria-current");
    const label = say("actionsOf", { title });
    this.#more.setAttribute("aria-label", label);
    this.#more.title = label;
    this.node.classList.toggle("is-open", isOpen);
  }

  #openMenu() {
    const { onSaveMarkdown, onSaveJson, onRemove } = this.#actions;
    openMenu(this.#more, [
      { icon: "edit", label: say("rename"), action: () => this.#rename() },
      { icon: "save", label: say("saveMarkdown"), action: () => onSaveMarkdown(this.#conversation) },
      { icon: "save", label: say("saveJson"), action: () => onSaveJson(this.#conversation) },
      { icon: "remove", label: say("remove"), action: () => onRemove(this.#conversation), isGrave: true },
    ]);
  }

  #rename() {
    const input = element("input", { class: "rename", type: "text", maxlength: "120", "aria-label": say("rename") });
    input.value = titleOf(this.#conversation);
    let isDone = false;
    const finish = (title) => {
      if (isDone) return; // taking the input away makes it lose the focus, which would finish again
      isDone = true;
      this.node.replaceChildren(this.#name, this.#more);
      if (title !== titleOf(this.#conversation)) this.#actions.onRename(this.#conversation, title);
    };
    input.addEventListener("blur", () => finish(input.value.trim()));
    input.addEventListener("keydown", (event) => {
      if (isOfInputMethod(event) || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      event.preventDefault(); // Enter would press what gets the focus
      finish(event.key === "Enter" ? input.value.trim() : titleOf(this.#conversation));
      this.#name.focus();
    });
    this.node.replaceChildren(input);
    input.focus();
    input.select();
  }
}
