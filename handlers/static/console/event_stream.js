// Reads Server-Sent Events of this server from a Response: it ends lines with \n only, and blocks with an empty one.

/** Each event as {event, data, id, retry}: text, or undefined where the block has no such line. Ends with the stream. */
export async function* eventsOf(response) {
  let rest = ''
  for await (const text of textOf(response)) {
    const blocks = (rest + text).split('\n\n')
    rest = blocks.pop()
    for (const block of blocks) yield parse(block)
  }
}

/** The text of a body as it arrives. */
export async function* textOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    reader.cancel().catch(() => {}) // it may have failed already
  }
}

function parse(block) {
  const event = {}
  for (const line of block.split('\n')) {
    const colon = line.indexOf(':')
    if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, '')
  }
  return event
}
