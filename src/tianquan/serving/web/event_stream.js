/**
 * Server-sent events of a fetch response. `EventSource` cannot POST, so the stream is read here:
 * events end at an empty line, `data:` lines of one event are joined, lines that begin with `:` are pings.
 */

/**
 * Read the data of each event.
 * @param {ReadableStream<Uint8Array>} stream - the body of the response.
 * @returns {AsyncGenerator<string>} the data, one string per event.
 */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/); // a final \r may be half of \r\n
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the caller left early: the server must hear of it
  }
}
