/** The list of conversations: open, rename, export, delete. */

import { titleOf } from "./conversation.js";
import { element, iconButton } from "./element.js";
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
    this.#list.replaceChildren(...sorted.map((conversation) => this.#entry(conversation, conversation.id === openId)));
  }

  #entry(conversation, isOpen) {
    const title = titleOf(conversation);
    const name = element(
      "button",
      {
        type: "button",
        class: "conversation-name",
        title,
        "aria-current": isOpen ? "page" : null,
        onclick: () => this.#actions.onOpen(conversation),
      },
      title,
    );
    const more = iconButton(
      "more",
      say("actionsOf", { title }),
      () => this.#openMenu(conversation, more, entry),
      "quiet more",
    );
    more.setAttribute("aria-haspopup", "menu");
    const entry = element("li", { class: isOpen ? "is-open" : "" }, name, more);
    return entry;
  }

  #openMenu(conversation, button, entry) {
    const { onSaveMarkdown, onSaveJson, onRemove } = this.#actions;
    openMenu(button, [
      { icon: "edit", label: say("rename"), action: () => this.#rename(conversation, entry) },
      { icon: "save", label: say("saveMarkdown"), action: () => onSaveMarkdown(conversation) },
      { icon: "save", label: say("saveJson"), action: () => onSaveJson(conversation) },
      { icon: "remove", label: say("remove"), action: () => onRemove(conversation), isGrave: true },
    ]);
  }

  #rename(conversation, entry) {
    const input = element("input", { class: "rename", type: "text", maxlength: "120", "aria-label": say("rename") });
    input.value = titleOf(conversation);
    let isDone = false;
    const finish = (title) => {
      if (isDone) return; // taking the input away makes it lose the focus, which would finish again
      isDone = true;
      this.#actions.onRename(conversation, title);
    };
    input.addEventListener("blur", () => finish(input.value.trim()));
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) finish(input.value.trim());
      else if (event.key === "Escape") {
        event.stopPropagation();
        finish(conversation.title ?? "");
      }
    });
    entry.replaceChildren(input);
    input.focus();
    input.select();
  }
}
