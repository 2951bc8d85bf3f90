/** A world for the client that stands still until a test moves it: clock, timers, chance, and a server of scripts. */

const turn = () => new Promise((resolve) => setImmediate(resolve))

/** Until everything that is under way has come as far as it can without the clock. */
export async function settled() {
  for (let turns = 0; turns < 10; turns += 1) await turn()
}

export class World {
  /** Requests of the stream in the order in which they came, see `Exchange`. */
  exchanges = []
  posts = []
  chance = 0.5
  #now = 1_000_000
  #asleepMs = 0
  #timers = new Map()
  #lastTimer = 0
  /** What `fetch` answers a POST with. */
  answerPost = () => Response.json({ ticket: `ticket-${this.posts.length}`, expires_at: '' })
  page = new EventTarget()

  get environment() {
    return {
      fetch: (url, init) => this.#fetch(new URL(url), init),
      now: () => this.#now,
      wall: () => this.#now + this.#asleepMs,
      random: () => this.chance,
      setTimeout: (callback, ms) => {
        this.#lastTimer += 1
        this.#timers.set(this.#lastTimer, { at: this.#now + ms, callback })
        return this.#lastTimer
      },
      clearTimeout: (timer) => this.#timers.delete(timer),
      page: this.page,
      locks: null,
      BroadcastChannel: null,
    }
  }

  get latest() {
    return this.exchanges.at(-1)
  }

  get timers() {
    return this.#timers.size
  }

  /** Let time pass, timer by timer. */
  async pass(ms) {
    await settled()
    const end = this.#now + ms
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= end).sort(([, one], [, other]) => one.at - other.at)[0]
      if (!due) break
      const [timer, { at, callback }] = due
      this.#timers.delete(timer)
      this.#now = Math.max(this.#now, at)
      callback()
      await settled()
    }
    this.#now = end
    await settled()
  }

  /** The machine sleeps: timers and the monotonic clock stand still, the wall clock does not. */
  sleep(ms) {
    this.#asleepMs += ms
  }

  #fetch(url, init) {
    if (init.method === 'POST') {
      this.posts.push({ url, init })
      return Promise.resolve(this.answerPost(url, init))
    }
    const exchange = new Exchange(url, init)
    this.exchanges.push(exchange)
    return exchange.response
  }
}

/** One request of a stream; nothing is answered until the test says so. */
class Exchange {
  #answer
  #body
  hasEnded = false

  constructor(url, init) {
    this.url = url
    this.init = init
    this.response = new Promise((resolve, reject) => (this.#answer = { resolve, reject }))
    init.signal.addEventListener('abort', () => (this.hasEnded = true))
  }

  get lastEventId() {
    return this.url.searchParams.get('last_event_id')
  }

  get authorization() {
    return this.init.headers.Authorization
  }

  /** Answer 200, with these blocks. */
  async stream(...blocks) {
    const body = new ReadableStream({ start: (controller) => (this.#body = controller) })
    this.#answer.resolve(new Response(body, { headers: { 'Content-Type': 'text/event-stream; charset=utf-8' } }))
    await this.send(...blocks)
  }

  async send(...blocks) {
    for (const block of blocks) this.#body.enqueue(typeof block === 'string' ? new TextEncoder().encode(block) : block)
    await settled()
  }

  async end() {
    this.#body.close()
    await settled()
  }

  async cut() {
    this.#body.error(new TypeError('terminated'))
    await settled()
  }

  async refuse(status, problem, headers = {}) {
    const body = problem ? JSON.stringify({ status, ...problem }) : null
    this.#answer.resolve(new Response(body, { status, headers: { ...(problem && { 'Content-Type': 'application/problem+json' }), ...headers } }))
    await settled()
  }

  async fail() {
    this.#answer.reject(new TypeError('fetch failed'))
    await settled()
  }
}

// ---- what a server writes

export const block = (event, wire, id, retry) =>
  `event: ${event}\n${retry === undefined ? '' : `retry: ${retry}\n`}data: ${JSON.stringify(wire)}\n${id ? `id: ${id}\n` : ''}\n`

export const summary = (order_type, created, cancelled = 0) => ({ order_type, created, cancelled })

export const wireUpdate = (strategy_id, after, summaries, totals, batches = 1) => ({
  type: 'order_batch_update',
  data: { summaries, timestamp: '2026-01-31T14:59:22.972Z' },
  stream: { strategy_id, after, batches, ...(totals && { totals }) },
})

export const update = (strategy_id, after, id, summaries, totals) =>
  block('order_batch_update', wireUpdate(strategy_id, after, summaries, totals), id)

export const catchUp = (after, id, updates) => block('order_batch_catch_up', { type: 'order_batch_catch_up', updates, after }, id)

export const control = (event, data, id, retry) => block(event, { type: event, data }, id, retry)

export const open = (position, { resumed = false, totals, heartbeat = 10, retry = 1000 } = {}) =>
  control('stream_open', { position, strategies: [3], resumed, heartbeat_seconds: heartbeat, ...(totals && { totals }) }, position, retry)

export const reset = (position, totals, reason = 'trimmed') =>
  control('stream_reset', { reason, position, strategies: [3], heartbeat_seconds: 10, totals }, position, 1000)

export const heartbeat = (position) => control('stream_heartbeat', { position, timestamp: '2026-01-31T14:59:34.917Z' })

export const closing = (reason, reconnect, retry) => control('stream_closing', { reason, reconnect }, undefined, retry)
