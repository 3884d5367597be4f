/**
 * Markdown on the page. While an answer grows only the blocks that changed are made anew, so that a selection in
 * an earlier paragraph and the scroll position of a wide table stay.
 */

import { element, icon } from "./element.js";
import { parseBlocks } from "./markdown_blocks.js";
import { parseInline } from "./markdown_inline.js";
import { say } from "./strings.js";

const TAGS = { strong: "strong", emphasis: "em", strike: "s" };
const COPIED_MS = 1600;

/** A text that may grow. */
export class MarkdownView {
  #sources = [];

  constructor() {
    this.node = element("div", { class: "markdown" });
  }

  /**
   * Show a text.
   * @param {string} text - Markdown.
   * @param {boolean} isGrowing - whether more will come: marks that are still open are shown as if closed, so that
   *   stars do not flicker before a word becomes bold.
   */
  show(text, isGrowing = false) {
    const blocks = isGrowing ? parseGrowing(text) : parseBlocks(text);
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.#sources[same]) same += 1;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    this.node.append(...blocks.slice(same).map(renderBlock));
    this.#sources = blocks.map((block) => block.source);
  }
}

/** Blocks of a text whose end may not mean yet what it will. */
function parseGrowing(text) {
  const blocks = parseBlocks(leafOf(parseBlocks(text))?.type === "code" ? text : closeMarks(text));
  const last = blocks.at(-1);
  if (last?.type === "paragraph") last.text = last.text.replace(/(^|\n)\|[^]*$/, ""); // the head of a table to come
  if (last) last.source += "\0"; // to be made anew when the text has ended, even where nothing more came
  return blocks;
}

/** The innermost block at the end. */
function leafOf(blocks) {
  const last = blocks.at(-1);
  const inner = last?.blocks ?? last?.items?.at(-1).blocks;
  return inner?.length > 0 ? leafOf(inner) : last;
}

/** Close the code or the strong text that the last line leaves open. */
function closeMarks(text) {
  const line = text.slice(text.lastIndexOf("\n") + 1);
  const isOpen = (mark, part) => part.split(mark).length % 2 === 0;
  if (/^\s*(`{3,}|~{3,}|\|)/.test(line)) return text;
  if (isOpen("`", line)) return text.endsWith("`") ? text.replace(/`+$/, "") : `${text}\``;
  if (!isOpen("**", line)) return text;
  const bare = text.replace(/\*+$/, "");
  return isOpen("**", bare.slice(bare.lastIndexOf("\n") + 1)) ? `${bare.trimEnd()}**` : bare;
}

function renderBlock(block) {
  switch (block.type) {
    case "code":
      return renderCode(block);
    case "rule":
      return element("hr");
    case "heading":
      return element(`h${Math.min(block.level + 2, 6)}`, {}, ...renderInline(block.text)); // h1, h2 are the page's
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(renderBlock));
    case "list":
      return renderList(block);
    case "table":
      return renderTable(block);
    default:
      return element("p", {}, ...renderInline(block.text));
  }
}

function renderInline(text) {
  return parseInline(text).map(renderNode);
}

function renderNode(node) {
  switch (node.type) {
    case "text":
      return document.createTextNode(node.text);
    case "break":
      return element("br");
    case "code":
      return element("code", {}, node.text);
    case "link":
      return element(
        "a",
        { href: node.url, target: "_blank", rel: "noopener noreferrer nofollow" },
        ...node.nodes.map(renderNode),
      );
    default:
      return element(TAGS[node.type], {}, ...node.nodes.map(renderNode));
  }
}

function renderList({ start, items }) {
  const isOrdered = start !== null;
  return element(
    isOrdered ? "ol" : "ul",
    isOrdered && start !== 1 ? { start } : {},
    ...items.map(({ blocks, checked }) => {
      const isOneParagraph = blocks.length > 0 && blocks[0].type === "paragraph";
      const children = isOneParagraph
        ? [...renderInline(blocks[0].text), ...blocks.slice(1).map(renderBlock)]
        : blocks.map(renderBlock);
      if (checked === null) return element("li", {}, ...children);
      const box = element("input", { type: "checkbox", disabled: true, checked });
      return element("li", { class: "task" }, box, ...children);
    }),
  );
}

function renderTable({ aligns, head, rows }) {
  const cells = (tag, row) =>
    row.map((cell, n) => element(tag, { class: `align-${aligns[n]}` }, ...renderInline(cell)));
  // a wide table scrolls by itself, with the keyboard too
  return element(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": say("table") },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...cells("th", head))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))),
    ),
  );
}

function renderCode({ language, text }) {
  const button = element(
    "button",
    { type: "button", class: "quiet copy-code", "aria-label": say("copyCode"), title: say("copyCode") },
    icon("copy"),
  );
  button.addEventListener("click", () => copyText(text, button));
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", {}, language || say("code")), button),
    element("pre", { tabindex: "0" }, element("code", {}, text)),
  );
}

/**
 * Copy a text and show on the button that it was.
 * @param {string} text - what to copy.
 * @param {HTMLButtonElement} button - with an icon.
 */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // plain http on a local network has no clipboard; the older command works there
    const area = element("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.querySelector("svg").replaceWith(icon("check"));
  button.classList.add("is-done");
  document.getElementById("announcements").textContent = say("copied");
  setTimeout(() => {
    button.querySelector("svg").replaceWith(icon("copy"));
    button.classList.remove("is-done");
  }, COPIED_MS);
}
