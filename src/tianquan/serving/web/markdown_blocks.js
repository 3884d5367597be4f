/**
 * Markdown as models write it, into blocks. The part of CommonMark and of GitHub's tables that answers use, read
 * leniently: a nested list may be indented by any amount, a fence may still be open while the answer grows.
 * Left out on purpose: HTML (it stays text), indented code, reference links, footnotes.
 *
 * One pass over the lines; nesting is capped, so that hostile text costs no more than long text.
 */

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)]) +(?=\S)/; // a mark alone is not a list yet: the answer may go on with `**`
const TASK = /^\[([ xX])\] +/;
const CELL_RULE = /^:?-+:?$/;

/**
 * @typedef {{type: "paragraph", text: string} | {type: "heading", level: number, text: string} | {type: "rule"} |
 *   {type: "code", language: string, text: string} | {type: "quote", blocks: Block[]} |
 *   {type: "list", start: ?number, items: {blocks: Block[], checked: ?boolean}[]} |
 *   {type: "table", aligns: string[], head: string[], rows: string[][]}} Block
 */

/**
 * Split a text into blocks.
 * @param {string} text - Markdown.
 * @returns {Array<Block & {source: string}>} the blocks, each with the lines it was read from.
 */
export function parseBlocks(text) {
  const lines = text
    .replace(/\r\n?/g, "\n")
    .split("\n")
    .map((line) => line.replace(/^[ \t]+/, expandTabs));
  return readBlocks(lines, 0);
}

function expandTabs(indent) {
  return indent.replace(/\t/g, "    ");
}

function readBlocks(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [block, end] = readBlock(lines, at, depth);
    blocks.push({ ...block, source: lines.slice(at, end).join("\n") });
    at = end;
  }
  return blocks;
}

/** @returns {[Block, number]} the block that begins at a line, and the line after it. */
function readBlock(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return readCode(lines, at);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = (heading[2] ?? "")
      .trim()
      .replace(/(^|[ \t])#+$/, "")
      .trim();
    return [{ type: "heading", level: heading[1].length, text }, at + 1];
  }
  if (isRule(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH && isQuote(line)) return readQuote(lines, at, depth);
  if (depth < MAX_DEPTH && MARKER.test(line)) return readList(lines, at, depth);
  if (isTable(lines, at)) return readTable(lines, at);
  let end = at + 1;
  while (end < lines.length && !interrupts(lines, end)) end += 1;
  return [
    {
      type: "paragraph",
      text: lines
        .slice(at, end)
        .map((l) => l.trim())
        .join("\n"),
    },
    end,
  ];
}

/** Whether a line ends the paragraph before it. */
function interrupts(lines, at) {
  const line = lines[at];
  if (line.trim() === "" || FENCE.test(line) || HEADING.test(line) || isRule(line) || isQuote(line)) return true;
  const marker = MARKER.exec(line);
  // as in CommonMark: a number in running text is a list only where it begins at 1
  if (marker && (marker[2].length === 1 || parseInt(marker[2], 10) === 1)) return true;
  return isTable(lines, at);
}

function isRule(line) {
  const bare = line.replace(/[ \t]/g, "");
  return bare.length >= 3 && "-*_".includes(bare[0]) && [...bare].every((c) => c === bare[0]);
}

function isQuote(line) {
  return line.trimStart()[0] === ">";
}

function readCode(lines, at) {
  const [, fence, info] = FENCE.exec(lines[at]);
  const indent = indentOf(lines[at]);
  let end = at + 1;
  const isEnd = (line) => {
    const bare = line.trim();
    return bare.length >= fence.length && [...bare].every((c) => c === fence[0]);
  };
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const text = lines
    .slice(at + 1, end)
    .map((line) => outdent(line, indent))
    .join("\n");
  const language = info.trim().split(/\s/)[0];
  return [{ type: "code", language, text }, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at, depth) {
  let end = at;
  while (
    end < lines.length &&
    (isQuote(lines[end]) || (lines[end].trim() !== "" && end > at && !interrupts(lines, end)))
  )
    end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(/^ *> ?/, ""));
  return [{ type: "quote", blocks: readBlocks(inner, depth + 1) }, end];
}

function readList(lines, at, depth) {
  const first = MARKER.exec(lines[at]);
  const isOrdered = first[2].length > 1;
  const baseIndent = first[1].length;
  const items = [];
  let end = at;
  while (end < lines.length) {
    const marker = MARKER.exec(lines[end]);
    if (!marker || marker[1].length > baseIndent + 1 || marker[2].length > 1 !== isOrdered || isRule(lines[end])) break;
    const itemEnd = endOfItem(lines, end, marker[1].length);
    const inner = [
      lines[end].slice(marker[0].length),
      ...lines.slice(end + 1, itemEnd).map((l) => outdent(l, marker[0].length)),
    ];
    const task = TASK.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(task[0].length);
    items.push({ blocks: readBlocks(inner, depth + 1), checked: task ? task[1] !== " " : null });
    end = itemEnd;
  }
  return [{ type: "list", start: isOrdered ? parseInt(first[2], 10) : null, items }, end];
}

/** The line after a list item: it goes on over indented lines, lazy ones, and blank ones before either. */
function endOfItem(lines, at, indent) {
  let end = at + 1;
  let isAfterBlank = false;
  let fence = null;
  for (let n = at + 1; n < lines.length; n += 1) {
    const line = lines[n];
    if (line.trim() === "") {
      isAfterBlank = true;
      continue;
    }
    const isInside = indentOf(line) >= indent + 2;
    const isLazy = !isAfterBlank && fence === null && !interrupts(lines, n) && !MARKER.test(line);
    if (!isInside && !isLazy) break;
    const mark = FENCE.exec(line.trimStart());
    if (mark) fence = fence === null ? mark[1] : null;
    isAfterBlank = false;
    end = n + 1;
  }
  // the blank lines up to the next item are the list's, so that numbering goes on over them
  let next = end;
  while (next < lines.length && lines[next].trim() === "") next += 1;
  return next < lines.length && MARKER.test(lines[next]) ? next : end;
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return false;
  const rule = splitRow(lines[at + 1]);
  return rule.length === splitRow(lines[at]).length && rule.every((cell) => CELL_RULE.test(cell));
}

function readTable(lines, at) {
  const head = splitRow(lines[at]);
  const aligns = splitRow(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "end";
    return "start";
  });
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|") && lines[end].trim() !== ""; end += 1) {
    const cells = splitRow(lines[end]);
    rows.push(head.map((_, n) => cells[n] ?? ""));
  }
  return [{ type: "table", aligns, head, rows }, end];
}

/** @returns {string[]} the cells of a row; `\|` is a bar within a cell. */
function splitRow(line) {
  let row = line.trim();
  if (row.startsWith("|")) row = row.slice(1);
  if (row.endsWith("|") && !row.endsWith("\\|")) row = row.slice(0, -1);
  return row.split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function outdent(line, indent) {
  return line.slice(Math.min(indent, indentOf(line)));
}
