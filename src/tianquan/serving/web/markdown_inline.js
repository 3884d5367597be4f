/**
 * The inside of a Markdown paragraph: code, strong, emphasis, strike, links, line breaks.
 *
 * Emphasis asks only that its marks touch the words they enclose. CommonMark's rule looks at punctuation too, and
 * thereby fails on Chinese, where `**重要。**然后` is how models write it.
 */

const MAX_DEPTH = 6;
const MAX_LINK_LENGTH = 1000; // of its words and of its address; without it unclosed brackets would cost n^2
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"'`\u3000-\u303f\uff00-\uffef]+/y;
const BREAK_TAG = /<br ?\/?>/iy;
const SAFE_PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "strike"],
  ["*", "emphasis"],
  ["_", "emphasis"],
];

/**
 * @typedef {{type: "text"|"code", text: string} | {type: "break"} |
 *   {type: "strong"|"emphasis"|"strike", nodes: Inline[]} | {type: "link", url: string, nodes: Inline[]}} Inline
 */

/**
 * Split a paragraph's text.
 * @param {string} text - the text.
 * @returns {Inline[]} the parts.
 */
export function parseInline(text) {
  return new InlineReader(text, 0, true).read();
}

/**
 * @param {string} address - as the model wrote it.
 * @returns {?string} the address if following it can only open a page or a mail; null for anything else.
 */
export function safeUrl(address) {
  try {
    const url = new URL(address.trim()); // without a base: relative addresses would lead into this server
    return SAFE_PROTOCOLS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** One pass over a text. */
class InlineReader {
  #text;
  #at = 0;
  #depth;
  #withLinks;
  #nodes = [];
  #plain = "";
  #missing = new Set(); // closing marks known not to follow, which keeps unclosed marks linear

  constructor(text, depth, withLinks) {
    this.#text = text;
    this.#depth = depth;
    this.#withLinks = withLinks;
  }

  read() {
    while (this.#at < this.#text.length) {
      if (!this.#readSpecial()) {
        this.#plain += this.#text[this.#at];
        this.#at += 1;
      }
    }
    this.#flush();
    return this.#nodes;
  }

  #readSpecial() {
    switch (this.#text[this.#at]) {
      case "\\":
        return this.#readEscape();
      case "\n":
        return this.#push({ type: "break" }, this.#at + 1);
      case "`":
        return this.#readCode();
      case "*":
      case "_":
      case "~":
        return this.#depth < MAX_DEPTH && this.#readMarks();
      case "[":
        return this.#readLink(this.#at);
      case "!":
        return this.#text[this.#at + 1] === "[" && this.#readLink(this.#at + 1); // a picture is shown as a link
      case "<":
        return this.#readTag();
      case "h":
        return this.#readBareUrl();
      default:
        return false;
    }
  }

  #push(node, end) {
    this.#flush();
    this.#nodes.push(node);
    this.#at = end;
    return true;
  }

  #flush() {
    if (this.#plain) this.#nodes.push({ type: "text", text: this.#plain });
    this.#plain = "";
  }

  #readEscape() {
    const next = this.#text[this.#at + 1];
    if (next === undefined || !PUNCTUATION.test(next)) return false;
    this.#plain += next;
    this.#at += 2;
    return true;
  }

  #readCode() {
    const open = runLength(this.#text, this.#at);
    const mark = "`".repeat(open);
    if (!this.#missing.has(mark)) {
      for (let end = this.#text.indexOf(mark, this.#at + open); end >= 0;) {
        const length = runLength(this.#text, end);
        if (length === open) {
          const inner = this.#text.slice(this.#at + open, end).replaceAll("\n", " ");
          const isPadded = /^ .* $/s.test(inner) && inner.trim() !== "";
          return this.#push({ type: "code", text: isPadded ? inner.slice(1, -1) : inner }, end + open);
        }
        end = this.#text.indexOf(mark, end + length);
      }
      this.#missing.add(mark);
    }
    this.#plain += mark;
    this.#at += open;
    return true;
  }

  #readMarks() {
    for (const [mark, type] of MARKS) {
      if (!this.#text.startsWith(mark, this.#at) || this.#missing.has(mark)) continue;
      const begin = this.#at + mark.length;
      const before = this.#text[this.#at - 1] ?? " ";
      if (/\s/.test(this.#text[begin] ?? " ") || (mark[0] === "_" && /[\p{L}\p{N}]/u.test(before))) continue;
      const end = this.#closing(mark, begin);
      if (end < 0) continue;
      const nodes = new InlineReader(this.#text.slice(begin, end), this.#depth + 1, this.#withLinks).read();
      return this.#push({ type, nodes }, end + mark.length);
    }
    return false;
  }

  /** Where a mark closes; code and escapes in between do not count, nor does `**` for `*`. */
  #closing(mark, begin) {
    for (let at = begin; at < this.#text.length;) {
      const character = this.#text[at];
      if (character === "\\") at += 2;
      else if (character === "`") {
        const length = runLength(this.#text, at);
        const end = this.#text.indexOf("`".repeat(length), at + length);
        at = end < 0 ? at + length : end + length;
      } else if (character === mark[0]) {
        const length = runLength(this.#text, at);
        if (this.#closes(mark, at, length, begin)) return at + (length > mark.length ? length - mark.length : 0);
        at += length;
      } else at += 1;
    }
    this.#missing.add(mark);
    return -1;
  }

  #closes(mark, at, length, begin) {
    const isLongEnough = length === mark.length || length >= 3; // `***` closes both of a pair
    if (!isLongEnough || at === begin || /\s/.test(this.#text[at - 1])) return false;
    return mark[0] !== "_" || !/[\p{L}\p{N}]/u.test(this.#text[at + length] ?? " ");
  }

  #readLink(open) {
    if (!this.#withLinks) return false;
    const close = closingBracket(this.#text, open, "[", "]");
    if (close < 0 || this.#text[close + 1] !== "(") return false;
    const end = closingBracket(this.#text, close + 1, "(", ")");
    if (end < 0) return false;
    const label = this.#text.slice(open + 1, close);
    const address = this.#text
      .slice(close + 2, end)
      .trim()
      .replace(/\s+(?:"[^"]*"|'[^']*')$/, "")
      .replace(/^<(.*)>$/, "$1");
    const nodes = new InlineReader(label || address, this.#depth + 1, false).read();
    const url = safeUrl(address);
    if (url !== null) return this.#push({ type: "link", url, nodes }, end + 1);
    this.#flush();
    this.#nodes.push(...nodes); // an address that could run something, or lead into this server: its words only
    this.#at = end + 1;
    return true;
  }

  #readTag() {
    BREAK_TAG.lastIndex = this.#at;
    if (BREAK_TAG.test(this.#text)) return this.#push({ type: "break" }, BREAK_TAG.lastIndex);
    const end = this.#text.indexOf(">", this.#at);
    const address = end < 0 || end - this.#at > MAX_LINK_LENGTH ? "" : this.#text.slice(this.#at + 1, end);
    if (!/^(https?:\/\/|mailto:)\S+$/.test(address) || safeUrl(address) === null) return false;
    return this.#push({ type: "link", url: safeUrl(address), nodes: [{ type: "text", text: address }] }, end + 1);
  }

  #readBareUrl() {
    BARE_URL.lastIndex = this.#at;
    if (!this.#withLinks || !BARE_URL.test(this.#text)) return false;
    let address = this.#text.slice(this.#at, BARE_URL.lastIndex).replace(/[.,;:!?*_~]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
    const url = safeUrl(address);
    if (url === null) return false;
    return this.#push({ type: "link", url, nodes: [{ type: "text", text: address }] }, this.#at + address.length);
  }
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** @returns {number} where the bracket at a place closes, or -1 where it does not within a link's length. */
function closingBracket(text, open, opening, closing) {
  let depth = 0;
  for (let at = open; at < Math.min(text.length, open + MAX_LINK_LENGTH); at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === opening) depth += 1;
    else if (text[at] === closing) {
      depth -= 1;
      if (depth === 0) return at;
    }
  }
  return -1;
}
