/**
 * Tallywire's client for browsers and Node: one stream that stays open, with sums that are exact. The types, and what
 * each option and event means, are in tallywire.d.ts; the wire is in docs/protocol.md.
 *
 * From the inside out: EventParser makes blocks of bytes and Tally sums of updates, both pure. Link keeps one connection
 * alive and feeds a Tally. Tabs lets one tab of a site have the Link and the others listen. TallywireStream is all of
 * it, for a page.
 */

const MAX_FRAME_LENGTH = 4 * 2 ** 20
const MAX_DELAY_MS = 60_000
const MAX_RETRY_AFTER_MS = 3_600_000
/** A timer that is asked for more goes off at once. */
const MAX_TIMER_MS = 2 ** 31 - 1
/** Before the server has named a time. */
const DEFAULT_RETRY_MS = 1000
/** For the token and the first event together. */
const OPENING_MS = 30_000
/** Between 1.5 and 2: a heartbeat that is late by half is not a dead connection. */
const SILENT_HEARTBEATS = 1.75
/** Positions by which a frame that comes again is known. A proxy that repeats repeats what is recent. */
const RECENT_POSITIONS = 64

const COUNTS = new Set(['order_batch_update', 'order_batch_catch_up'])

export class StreamError extends Error {
  constructor(kind, message, { final = false, ...facts } = {}) {
    super(message)
    this.name = 'StreamError'
    Object.assign(this, { kind, final }, facts)
  }
}

// ---- bytes to blocks

export class EventParser {
  #decoder = new TextDecoder() // takes a byte order mark off, and keeps half characters for the next piece
  #maxLength
  #line = ''
  #isBehindReturn = false
  #block = newBlock()

  constructor(maxFrameLength = MAX_FRAME_LENGTH) {
    this.#maxLength = maxFrameLength
  }

  feed(bytes) {
    const frames = []
    const text = this.#decoder.decode(bytes, { stream: true })
    if (!text) return frames
    // The line feed of a CRLF that was cut in two would be an empty line, and end a block in its middle.
    let from = this.#isBehindReturn && text[0] === '\n' ? 1 : 0
    const lineEnd = /\r\n|[\r\n]/g
    lineEnd.lastIndex = from
    for (let end; (end = lineEnd.exec(text)); from = lineEnd.lastIndex) {
      this.#append(text.slice(from, end.index))
      const line = this.#line
      this.#line = ''
      if (line) takeLine(this.#block, line)
      else {
        if (this.#block.hasFields) frames.push(frameOf(this.#block))
        this.#block = newBlock()
      }
    }
    this.#isBehindReturn = text.endsWith('\r')
    this.#append(text.slice(from))
    return frames
  }

  #append(text) {
    this.#line += text
    if (this.#block.length + this.#line.length > this.#maxLength) {
      throw new RangeError(`a frame is longer than ${this.#maxLength} characters`)
    }
  }
}

const newBlock = () => ({ hasFields: false, event: '', data: [], id: null, retry: null, raw: [], length: 0 })

const frameOf = ({ event, data, id, retry, raw }) => ({
  event: event || 'message',
  data: data.length ? data.join('\n') : null,
  id,
  retry,
  raw: raw.join('\n'),
})

function takeLine(block, line) {
  if (line[0] === ':' && !block.hasFields) {
    // Comment heartbeats have no empty line behind them: a quiet day would make one long block.
    block.raw.length = block.length = 0
  }
  block.raw.push(line)
  block.length += line.length + 1
  if (line[0] === ':') return
  block.hasFields = true
  const colon = line.indexOf(':')
  const field = colon < 0 ? line : line.slice(0, colon)
  const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1)
  if (field === 'event') block.event = value
  else if (field === 'data') block.data.push(value)
  else if (field === 'id' && !value.includes('\0')) block.id = value
  else if (field === 'retry' && /^[0-9]+$/.test(value)) block.retry = Number(value)
}

// ---- position and sums

/**
 * Sums and position move in one step, or not at all. `base` names where the sums were begun: only of one base can two
 * sums be compared, and there the one with more batches is the later one, without a look into positions.
 */
export class Tally {
  base = ''
  position = null
  #strategies = new Map()
  #recent = []
  #totals = null

  constructor(from = null) {
    if (from) this.#become(from)
  }

  /** A map of its own for whoever looks, so that nobody can spoil the sums; the same one until they change. */
  get totals() {
    this.#totals ??= new Map([...this.#strategies].map(([id, { summaries }]) => [id, summaries]))
    return this.#totals
  }

  get batches() {
    let batches = 0
    for (const strategy of this.#strategies.values()) batches += strategy.batches
    return batches
  }

  snapshot() {
    if (this.position === null) return null
    return { base: this.base, position: this.position, strategies: [...this.#strategies.values()] }
  }

  /** Start over at a position, from these totals. */
  begin(base, position, totals) {
    const strategies = totals.map(({ strategy_id, summaries }) => ({ strategy_id, summaries, batches: 0, timestamp: null }))
    this.#become({ base, position, strategies })
  }

  /**
   * Add updates that belong together. `known`: they have been added before. `gap`: something before them is missing;
   * nothing was added. A strategy whose sums are not what its update states is in `mismatches`, and has what is stated.
   */
  apply(id, after, updates) {
    if (after !== this.position) return { outcome: this.#recent.includes(id) ? 'known' : 'gap', mismatches: [] }
    if (!id || id === after) return { outcome: 'gap', mismatches: [] }
    const mismatches = []
    // Everything is read before anything is changed: a frame that cannot be read changes nothing.
    const changed = updates.map(({ data, stream: { strategy_id, batches, totals } }) => {
      const before = this.#strategies.get(strategy_id)
      let summaries = plus(before?.summaries ?? [], data.summaries)
      if (totals && !isSame(summaries, totals)) mismatches.push({ strategy_id, own: summaries, stated: totals, position: id })
      if (totals) summaries = immutable(totals) // the order is the server's
      return { strategy_id, summaries, batches: (before?.batches ?? 0) + batches, timestamp: data.timestamp }
    })
    for (const strategy of changed) this.#strategies.set(strategy.strategy_id, strategy)
    this.#moveTo(id)
    return { outcome: 'applied', mismatches }
  }

  /** Where own sums are not those that are stated for this position, and whether there are own ones of all that was counted. */
  compare(totals) {
    const mismatches = []
    let isComplete = true
    for (const { strategy_id, summaries } of totals) {
      const own = this.#strategies.get(strategy_id)?.summaries
      if (!own) isComplete &&= summaries.length === 0
      else if (!isSame(own, summaries)) mismatches.push({ strategy_id, own, stated: summaries, position: this.position })
    }
    return { mismatches, isComplete }
  }

  /** Move to where another tab is. Answers the difference as updates, null where there is none to tell, since the sums were replaced. */
  take(snapshot) {
    const { base, position } = snapshot
    const before = new Map(this.#strategies)
    const after = this.position
    if (base === this.base && new Tally(snapshot).batches <= this.batches) return []
    const updates = snapshot.strategies
      .map(({ strategy_id, summaries, batches, timestamp }) => {
        const own = before.get(strategy_id)
        const data = { summaries: minus(summaries, own?.summaries ?? []), timestamp }
        const stream = { strategy_id, after, batches: batches - (own?.batches ?? 0) }
        return { type: 'order_batch_update', data, stream, id: position }
      })
      .filter((update) => update.stream.batches)
    const isLater = base === this.base
    this.#become(snapshot)
    return isLater ? updates : null
  }

  #become({ base, position, strategies }) {
    this.base = base
    this.#recent = []
    this.#strategies = new Map(strategies.map((each) => [each.strategy_id, { ...each, summaries: immutable(each.summaries) }]))
    this.#moveTo(position)
  }

  #moveTo(position) {
    this.position = position
    this.#totals = null
    this.#recent.push(position)
    if (this.#recent.length > RECENT_POSITIONS) this.#recent.shift()
  }
}

const immutable = (summaries) => Object.freeze(summaries.map((summary) => Object.freeze({ ...summary })))

const byType = (summaries) => new Map(summaries.map((summary) => [summary.order_type, summary]))

const NOTHING = { created: 0, cancelled: 0 }

/** In the order of `summaries`, what is new behind. */
function plus(summaries, more) {
  const sums = byType(summaries)
  for (const { order_type, created, cancelled } of more) {
    const own = sums.get(order_type) ?? NOTHING
    sums.set(order_type, { order_type, created: own.created + created, cancelled: own.cancelled + cancelled })
  }
  return immutable([...sums.values()])
}

function minus(summaries, fewer) {
  const own = byType(fewer)
  return summaries
    .map(({ order_type, created, cancelled }) => {
      const less = own.get(order_type) ?? NOTHING
      return { order_type, created: created - less.created, cancelled: cancelled - less.cancelled }
    })
    .filter(({ created, cancelled }) => created || cancelled)
}

const isSame = (some, others) => minus(some, others).length === 0 && minus(others, some).length === 0

// ---- one connection

/** Silence on both clocks: one stands still while some machines sleep, the other can be set. A false alarm costs one resume. */
class Watch {
  #environment
  #onSilent
  #timer
  limitMs = OPENING_MS

  constructor(environment, onSilent) {
    this.#environment = environment
    this.#onSilent = onSilent
    this.touch()
    this.#tick()
  }

  touch() {
    this.heardAt = this.#environment.now()
    this.heardAtWall = this.#environment.wall()
  }

  stop() {
    this.#environment.clearTimeout(this.#timer)
  }

  #tick() {
    const { now, wall } = this.#environment
    const silentMs = Math.max(now() - this.heardAt, wall() - this.heardAtWall)
    if (silentMs > this.limitMs) this.#onSilent()
    // Many short waits: a timer that was frozen with its tab goes on where it stood, so that a long one would be late.
    else this.#timer = this.#environment.setTimeout(() => this.#tick(), Math.min(1000, this.limitMs / 8))
  }
}

/** Why a connection is given up that has not failed: a new token waits for the next one. */
const RENEWAL = new StreamError('token', 'there is a new token')

/**
 * Keeps a connection open and a Tally up to date. `host.deliver(type, event)` gets what happens, `host.changed(cause)`
 * is called when the sums have moved, `host.state(state, facts)` when the connection has.
 */
class Link {
  #options
  #environment
  #tally
  #host
  #retryMs = null
  /** Since the last connection that was one, and since the last frame that was in order. */
  #failures = 0
  #repairs = 0
  #token = null
  #nextToken
  #sessionToken
  #tokenReason = 'connect'
  #hasRenewed = false
  #wake = null

  constructor(options, environment, tally, host) {
    this.#options = options
    this.#environment = environment
    this.#tally = tally
    this.#host = host
  }

  /** Until it is aborted, or for good: then it answers why. */
  async run(signal) {
    while (!signal.aborted) {
      this.#host.state('connecting')
      const error = await this.#attempt(signal)
      if (signal.aborted) return null
      if (error === RENEWAL) continue
      const delayMs = this.#delayAfter(error)
      this.#failures += 1
      if (isRepair(error)) this.#repairs += 1
      if (error.kind === 'refused' && this.#mayRenew(error)) this.#renew()
      else if (error.final || isRefusedForGood(error)) return asFinal(error)
      else {
        this.#host.deliver('error', error)
        if (signal.aborted) return null
        this.#host.state('waiting', { delay_ms: delayMs, error })
        // The time that a server gives us is ours alone: nobody comes earlier.
        if (delayMs > 0 && !signal.aborted) await this.#wait(delayMs, signal, error.kind !== 'closing' && !error.retryAfterMs)
      }
    }
    return null
  }

  /** Something has changed that may have mended the way. */
  hurry() {
    this.#wake?.()
  }

  #wait(ms, signal, canHurry) {
    return new Promise((resolve) => {
      const done = () => {
        this.#environment.clearTimeout(timer)
        signal.removeEventListener('abort', done)
        this.#wake = null
        resolve()
      }
      const timer = this.#environment.setTimeout(done, ms)
      signal.addEventListener('abort', done, { once: true })
      if (canHurry) this.#wake = done
    })
  }

  #delayAfter(error) {
    const { random } = this.#environment
    // A repair is urgent, once. When it does not help, something is broken that haste does not mend.
    if (isRepair(error) && this.#repairs === 0 && this.#failures === 0) return 0
    const { kind, retryAfterMs = 0 } = error
    // The server has drawn its times apart already; before it has named one, they are drawn here.
    const retryMs = this.#retryMs ?? DEFAULT_RETRY_MS * (0.5 + random())
    if (kind === 'closing') return retryMs
    const longest = Math.max(retryMs, Math.min(this.#options.maxDelayMs, retryMs * 2 ** Math.max(this.#failures, this.#repairs)))
    const delayMs = retryMs + random() * (longest - retryMs)
    const leastMs = retryAfterMs ? Math.min(retryAfterMs, MAX_RETRY_AFTER_MS) + random() * retryMs : 0
    return Math.min(Math.max(delayMs, leastMs), MAX_TIMER_MS)
  }

  #mayRenew({ status }) {
    const canRenew = this.#options.token || this.#options.auth === 'ticket'
    return (status === 401 || status === 403) && canRenew && !this.#hasRenewed
  }

  #renew() {
    this.#hasRenewed = true
    this.#tokenReason = 'refused'
    this.#sessionToken = undefined
  }

  async #attempt(signal) {
    const attempt = new AbortController()
    const give = () => attempt.abort(signal.reason)
    signal.addEventListener('abort', give, { once: true })
    const watch = new Watch(this.#environment, () => attempt.abort(new StreamError('silent', 'nothing came for too long')))
    try {
      const response = await this.#request(attempt.signal)
      const parser = new EventParser(this.#options.maxFrameLength)
      const reader = response.body.getReader()
      for (;;) {
        const { done, value } = await unlessAborted(reader.read(), attempt.signal)
        if (done) throw new StreamError('ended', 'the response ended')
        watch.touch()
        for (const frame of parser.feed(value)) {
          this.#take(frame, watch, attempt)
          if (attempt.signal.aborted) throw attempt.signal.reason
        }
      }
    } catch (error) {
      if (attempt.signal.aborted) return attempt.signal.reason
      if (error instanceof StreamError) return error
      const kind = error instanceof RangeError ? 'frame' : 'network'
      return new StreamError(kind, error?.message ?? String(error), { cause: error })
    } finally {
      signal.removeEventListener('abort', give)
      watch.stop()
      // Whatever is left of the request ends with it: a server counts streams.
      attempt.abort(new StreamError('ended', 'the attempt is over'))
    }
  }

  // -- asking

  async #request(signal) {
    const { auth, credentials } = this.#options
    const token = await this.#nextOrOwnToken(signal)
    const url = this.#url()
    const headers = { Accept: 'text/event-stream' }
    if (auth === 'session') await this.#startSession(token, signal)
    else if (auth === 'ticket') url.searchParams.set('ticket', (await this.#post('ticket', token, signal)).ticket)
    else if (token) headers.Authorization = `Bearer ${token}`
    const response = await this.#fetch(url, { headers, credentials }, signal)
    const type = response.headers.get('Content-Type') ?? ''
    if (response.status === 200 && /^text\/event-stream\b/i.test(type)) return response
    throw await refusal(response, this.#environment)
  }

  #url() {
    const { url, userId, strategyIds, totals } = this.#options
    const complete = new URL(url)
    const query = complete.searchParams
    if (userId !== undefined) query.set('user_id', userId)
    query.delete('strategy_id')
    for (const id of strategyIds === '*' ? ['*'] : strategyIds) query.append('strategy_id', id)
    query.set('shape', 'envelope')
    query.set('heartbeat', 'event')
    if (totals) query.set('totals', '1')
    // Not as a header: one more header is one more pre-flight for pages from elsewhere, at each reconnect.
    if (this.#tally.position !== null) query.set('last_event_id', this.#tally.position)
    return complete
  }

  async #nextOrOwnToken(signal) {
    const next = this.#nextToken
    this.#nextToken = undefined
    this.#token = next ?? (await this.#askToken(this.#tokenReason, signal))
    this.#tokenReason = 'connect'
    return this.#token
  }

  async #askToken(reason, signal) {
    const { token } = this.#options
    if (!token) return null
    try {
      return await unlessAborted((async () => token(reason))(), signal)
    } catch (error) {
      if (signal.aborted) throw error
      throw new StreamError('token', `there is no token: ${error?.message ?? error}`, { cause: error })
    }
  }

  async #startSession(token, signal) {
    if (!token || token === this.#sessionToken) return
    await this.#post('session', token, signal)
    this.#sessionToken = token
  }

  async #post(what, token, signal) {
    const url = new URL(this.#options.url)
    url.pathname += `/${what}`
    url.search = ''
    const headers = token ? { Authorization: `Bearer ${token}` } : {}
    const credentials = what === 'session' || !token ? 'include' : 'omit'
    const response = await this.#fetch(url, { method: 'POST', headers, credentials }, signal)
    if (response.status !== 200) throw await refusal(response, this.#environment)
    return unlessAborted(response.json(), signal)
  }

  #fetch(url, init, signal) {
    return unlessAborted(this.#environment.fetch(url.href, { cache: 'no-store', ...init, signal }), signal)
  }

  // -- listening

  #take(frame, watch, attempt) {
    // Of 0 all multiples are 0: a server that is away would be asked without a pause.
    if (frame.retry !== null) this.#retryMs = Math.min(Math.max(frame.retry, 1), MAX_TIMER_MS)
    this.#host.deliver('frame', frame)
    const take = frame.data !== null && Object.hasOwn(TAKE, frame.event) && TAKE[frame.event]
    if (!take || attempt.signal.aborted) return
    try {
      take(this, { ...JSON.parse(frame.data), ...(frame.id === null ? {} : { id: frame.id }) }, watch, attempt)
    } catch (error) {
      if (error instanceof StreamError) throw error
      throw new StreamError('frame', `a frame cannot be read: ${error?.message ?? error}`, { cause: error })
    }
  }

  open(event, watch) {
    const { position, resumed, totals = [], heartbeat_seconds } = event.data
    const asked = this.#tally.position
    this.#started(heartbeat_seconds, watch)
    let cause = null
    if (!resumed || asked === null) {
      this.#tally.begin(this.#newBase(), position, totals)
      cause = 'open'
    } else {
      if (position !== asked) this.#gap('after', position)
      const { mismatches, isComplete } = this.#tally.compare(this.#options.totals ? totals : [])
      if (this.#disagree(mismatches)) cause = 'mismatch'
      // Sums of the last visit may be of fewer strategies.
      else if (!isComplete) cause = 'open'
      if (cause) this.#tally.begin(this.#newBase(), position, totals)
    }
    this.#host.state('open')
    this.#host.deliver('stream_open', event)
    if (cause) this.#host.changed(cause)
  }

  reset(event, watch) {
    const { position, totals, heartbeat_seconds } = event.data
    this.#started(heartbeat_seconds, watch)
    this.#tally.begin(this.#newBase(), position, totals)
    this.#host.state('open')
    this.#host.deliver('stream_reset', event)
    this.#host.changed('reset')
  }

  counts(event, after, updates) {
    for (const update of updates) update.id = event.id
    const { outcome, mismatches } = this.#tally.apply(event.id, after, updates)
    if (outcome === 'gap') this.#gap('after', after)
    if (outcome === 'known') return
    this.#repairs = 0
    const isWrong = this.#disagree(mismatches)
    if (isWrong) this.#tally.base = this.#newBase()
    this.#host.counted(event, updates)
    this.#host.changed(isWrong ? 'mismatch' : 'update')
  }

  heartbeat(event) {
    this.#host.deliver(event.type, event)
    if (event.data.position !== this.#tally.position) this.#gap('heartbeat', event.data.position)
    this.#repairs = 0
  }

  expiring(event, attempt) {
    this.#host.deliver(event.type, event)
    if (!this.#options.token && this.#options.auth !== 'ticket') return
    // Not at once: all who were warned together would ask for tokens together, and a token that lives for less than the
    // warning would be renewed without end.
    const waitMs = event.data.seconds_left * 1000 * (0.25 + 0.25 * this.#environment.random())
    const timer = this.#environment.setTimeout(() => this.#moveOver(attempt), waitMs)
    attempt.signal.addEventListener('abort', () => this.#environment.clearTimeout(timer), { once: true })
  }

  closing(event) {
    const { reason, reconnect } = event.data
    this.#host.deliver(event.type, event)
    if (reason === 'token_expired') this.#tokenReason = 'expiring'
    throw new StreamError('closing', `the server ended the stream: ${reason}`, { reason, final: !reconnect })
  }

  notice(event) {
    this.#host.deliver(event.type, event)
  }

  /** Get the next token while the stream goes on, then go on with it. What comes in between comes with the resume. */
  async #moveOver(attempt) {
    try {
      const token = await this.#askToken('expiring', attempt.signal)
      if (attempt.signal.aborted || (token && token === this.#token)) return
      this.#nextToken = token
      attempt.abort(RENEWAL)
    } catch (error) {
      if (!attempt.signal.aborted) this.#host.deliver('error', error)
    }
  }

  #started(heartbeatSeconds, watch) {
    watch.limitMs = heartbeatSeconds * 1000 * SILENT_HEARTBEATS
    this.#hasRenewed = false
    this.#failures = 0
  }

  #gap(noticedBy, stated) {
    const { position } = this.#tally
    this.#host.deliver('gap', { noticed_by: noticedBy, position, stated })
    throw new StreamError('gap', `a frame is missing behind ${position}`)
  }

  #disagree(mismatches) {
    for (const mismatch of mismatches) this.#host.deliver('mismatch', mismatch)
    return mismatches.length > 0
  }

  #newBase() {
    return Math.floor(this.#environment.random() * 2 ** 53).toString(36)
  }
}

/** What is done with each event of a stream. Others are for later versions. */
const TAKE = {
  stream_open: (link, event, watch) => link.open(event, watch),
  stream_reset: (link, event, watch) => link.reset(event, watch),
  order_batch_update: (link, event) => link.counts(event, event.stream.after, [event]),
  order_batch_catch_up: (link, event) => link.counts(event, event.after, event.updates),
  stream_heartbeat: (link, event) => link.heartbeat(event),
  stream_expiring: (link, event, _watch, attempt) => link.expiring(event, attempt),
  stream_closing: (link, event) => link.closing(event),
  order_hourly_summary: (link, event) => link.notice(event),
}

/** What a resume mends, if anything does. */
const isRepair = ({ kind }) => kind === 'gap' || kind === 'silent'

async function refusal(response, { wall }) {
  const { status } = response
  const after = response.headers.get('Retry-After')
  const retryAfterMs = after === null ? 0 : /^\d+$/.test(after) ? after * 1000 : Math.max(0, Date.parse(after) - wall()) || 0
  const isProblem = /^application\/(problem\+)?json\b/i.test(response.headers.get('Content-Type') ?? '')
  const problem = isProblem ? await response.json().catch(() => undefined) : undefined
  const said = problem?.detail ?? `the answer is ${status}, and no stream`
  return new StreamError('refused', said, { status, problem, retryAfterMs })
}

/** What waiting mends: load, outages, and pages that something in between shows instead of a stream. */
function isRefusedForGood({ kind, status, problem }) {
  if (kind !== 'refused') return false
  if (problem?.retry) return problem.retry === 'no'
  return !(status === 200 || status === 408 || status === 425 || status === 429 || status >= 500)
}

const asFinal = (error) => Object.assign(error, { final: true })

function unlessAborted(promise, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop))
  })
}

// ---- one connection for all tabs

/** Silence after which a follower asks whether there is still a leader. Who leads needs no timer for that: it answers. */
const ASK_MS = 2000
/** How long it waits for an answer, before it takes the connection over. Up to a second more, so that not all do. */
const PATIENCE_MS = 2000
const TICK_MS = 500
/** How long a new leader waits for sums of the others. */
const OFFERS_MS = 150

/**
 * Whoever holds a Web Lock leads: it runs the Link, and tells the others what it applies. They apply the same, by the
 * same check of `after`, so that sums of each tab are exact by themselves, whoever led in between; what a follower has
 * missed it gets as a snapshot, and hands on as the difference. A leader that is silent loses the lock to a follower
 * that steals it, and learns so when it wakes. `term` grows with each leader, so that what an old one still says is not
 * listened to.
 */
class Tabs {
  #name
  #environment
  #tally
  #host
  #lead
  #channel
  #term = 0
  #isLeading = false
  #offers = null
  #queue = null
  #stop = null
  #timer
  #heardAt = 0
  #askedAt = null
  #paused = null

  constructor(name, environment, tally, host, lead) {
    this.#name = name
    this.#environment = environment
    this.#tally = tally
    this.#host = host
    this.#lead = lead
  }

  async run(signal) {
    this.#channel = new this.#environment.BroadcastChannel(this.#name)
    this.#channel.onmessage = ({ data }) => signal.aborted || this.#hear(data)
    const leave = () => (this.#resume(), this.#leave())
    signal.addEventListener('abort', leave)
    try {
      for (let how = { ifAvailable: true }; !signal.aborted; ) {
        await this.#paused?.over
        if (!signal.aborted) how = await this.#turn(how, signal)
      }
    } finally {
      signal.removeEventListener('abort', leave)
      this.#channel.close()
    }
  }

  /** What the page is told by its browser. */
  notice(type) {
    if (type === 'freeze' || type === 'pagehide') this.#pause()
    else if (type === 'resume' || type === 'pageshow') this.#resume()
    else if (!this.#isLeading) this.#ask()
  }

  /** Who is on the way out says nothing any more: a page may close its stream while it is told something. */
  get #speaks() {
    return this.#isLeading && !this.#stop.signal.aborted
  }

  tell(type, event) {
    if (this.#speaks) this.#post({ kind: 'wire', type, event, base: this.#tally.base })
  }

  /** Says who leads, how the connection is, and where the sums stand. */
  beat(withSnapshot = false) {
    if (!this.#speaks) return
    const { base, position } = this.#tally
    const snapshot = withSnapshot ? this.#tally.snapshot() : null
    this.#post({ kind: 'beat', facts: this.#host.facts(), base, position, snapshot })
  }

  end(error) {
    if (this.#speaks) this.#post({ kind: 'end', error: plain(error) })
  }

  /** One stay in the queue for the lock and at its head. Answers how to queue the next time. */
  async #turn(how, signal) {
    let next = {}
    const queue = (this.#queue = new AbortController())
    if (!how.ifAvailable && !how.steal) {
      this.#host.role('follower')
      this.#watchLeader(() => {
        next = { steal: true }
        queue.abort()
      })
    }
    let led = null
    try {
      const options = how.ifAvailable || how.steal ? how : { signal: queue.signal }
      await this.#environment.locks.request(this.#name, options, (lock) => {
        this.#environment.clearTimeout(this.#timer)
        if (lock && !signal.aborted && !this.#paused) led = this.#leadUntilStopped(!how.ifAvailable)
        return led
      })
    } catch (error) {
      // Stolen from us, or given up by us.
      if (error?.name !== 'AbortError') throw error
    } finally {
      this.#environment.clearTimeout(this.#timer)
      this.#stop?.abort()
      await led
    }
    return next
  }

  async #leadUntilStopped(hasPredecessor) {
    const stop = (this.#stop = new AbortController())
    if (hasPredecessor) await this.#gather()
    if (stop.signal.aborted) return
    this.#term += 1
    this.#isLeading = true
    this.#host.role('leader')
    this.beat()
    try {
      await this.#lead(stop.signal)
    } finally {
      this.#isLeading = false
    }
  }

  /** A leader that vanished may have told some more than others: begin where the one who knows most is. */
  async #gather() {
    this.#offers = []
    this.#post({ kind: 'ask', all: true })
    await new Promise((resolve) => this.#environment.setTimeout(resolve, OFFERS_MS))
    const offers = this.#offers
    this.#offers = null
    for (const { term, snapshot } of offers.sort((one, other) => other.term - one.term)) {
      this.#term = Math.max(this.#term, term)
      if (this.#tally.position === null || this.#tally.base === snapshot.base) this.#host.taken(snapshot)
    }
  }

  #watchLeader(onDead) {
    const { now, random, setTimeout } = this.#environment
    // Who knows nothing lets those go first who know where to go on.
    const patienceMs = PATIENCE_MS + 1000 * random() + (this.#tally.position === null ? 1000 : 0)
    let tickedAt = now()
    const tick = () => {
      const at = now()
      // Frozen itself, this tab has heard nothing, which says nothing about the leader.
      if (at - tickedAt > 5 * TICK_MS) this.#askedAt = null
      tickedAt = at
      if (this.#askedAt !== null && at - this.#askedAt > patienceMs) return onDead()
      if (this.#askedAt === null && at - this.#heardAt > ASK_MS) this.#ask()
      this.#timer = setTimeout(tick, TICK_MS)
    }
    this.#askedAt = null
    this.#ask()
    this.#timer = setTimeout(tick, TICK_MS)
  }

  #ask() {
    this.#askedAt ??= this.#environment.now()
    this.#post({ kind: 'ask', base: this.#tally.base, position: this.#tally.position })
  }

  #post(message) {
    this.#channel?.postMessage({ ...message, term: this.#term })
  }

  #hear(message) {
    const { kind, term } = message
    if (kind === 'ask') this.#answer(message)
    else if (kind === 'offer') this.#offers?.push(message)
    // The lock says who leads, and takes care of the other one; until it has, ours is the word that counts.
    else if (this.#isLeading) this.#term = Math.max(this.#term, term + 1)
    else if (term >= this.#term) this.#follow(message)
  }

  #answer({ term, all, base, position }) {
    if (this.#speaks) {
      this.#term = Math.max(this.#term, term)
      this.beat(all || base !== this.#tally.base || position !== this.#tally.position)
    } else if (all && this.#tally.position !== null) {
      this.#post({ kind: 'offer', snapshot: this.#tally.snapshot() })
    }
  }

  #follow({ kind, term, type, event, base, position, snapshot, facts, error }) {
    this.#term = term
    this.#heardAt = this.#environment.now()
    this.#askedAt = null
    if (kind === 'end') this.#host.finish(unplain(error))
    else if (kind === 'wire') this.#host.heard(type, event, base) || this.#ask()
    else {
      this.#host.state(facts.state, { ...facts, error: unplain(facts.error) })
      if (snapshot) this.#host.taken(snapshot)
      else if (position !== null && (base !== this.#tally.base || position !== this.#tally.position)) this.#ask()
    }
  }

  #leave() {
    this.#queue?.abort()
    this.#stop?.abort()
  }

  /** A page that is about to be frozen must hold no lock: nobody else would have a connection. */
  #pause() {
    if (this.#paused) return
    this.#paused = {}
    this.#paused.over = new Promise((resolve) => (this.#paused.end = resolve))
    this.#leave()
  }

  #resume() {
    this.#paused?.end()
    this.#paused = null
  }
}

/** An error as another tab can be sent it. */
const plain = (error) => error && { ...error, message: error.message, cause: undefined }

const unplain = (error) => error && new StreamError(error.kind, error.message, error)

// ---- for a page

const PAGE_EVENTS = ['online', 'visibilitychange', 'freeze', 'resume', 'pagehide', 'pageshow']

/** Looked up at each call: pages, and tests of pages, replace them. */
const WORLD = {
  fetch: (...given) => globalThis.fetch(...given),
  now: () => performance.now(),
  wall: () => Date.now(),
  random: () => Math.random(),
  setTimeout: (...given) => globalThis.setTimeout(...given),
  clearTimeout: (timer) => globalThis.clearTimeout(timer),
  page: globalThis.window ?? null,
  locks: globalThis.navigator?.locks ?? null,
  BroadcastChannel: globalThis.BroadcastChannel ?? null,
}

export class TallywireStream {
  #options
  #environment
  #tally
  #link
  #tabs = null
  #closed = new AbortController()
  #listeners = new Map()
  #facts
  #error = null

  constructor(options) {
    this.#options = checked(options)
    this.#environment = { ...WORLD, ...options.environment }
    this.#tally = new Tally(options.from)
    const host = this.#host()
    this.#link = new Link(this.#options, this.#environment, this.#tally, host)
    const { share } = this.#options
    const { locks, BroadcastChannel, page } = this.#environment
    if (share && locks && BroadcastChannel) {
      this.#tabs = new Tabs(scopeOf(this.#options), this.#environment, this.#tally, host, (stop) => this.#hold(stop))
    }
    this.#facts = { state: 'connecting', role: this.#tabs ? 'follower' : 'alone' }
    const { signal } = options
    if (signal?.aborted) this.close()
    signal?.addEventListener('abort', () => this.close(), { signal: this.#closed.signal })
    for (const type of PAGE_EVENTS) {
      page?.addEventListener(type, () => this.#notice(type), { signal: this.#closed.signal })
    }
    queueMicrotask(() => this.#run())
  }

  get state() {
    return this.#facts.state
  }

  get role() {
    return this.#facts.role
  }

  get error() {
    return this.#error
  }

  get position() {
    return this.#tally.position
  }

  get totals() {
    return this.#tally.totals
  }

  snapshot() {
    return this.#tally.snapshot()
  }

  on(type, listener) {
    const listeners = this.#listeners.get(type) ?? new Set()
    this.#listeners.set(type, listeners)
    const entry = { listener } // the same function may listen twice
    listeners.add(entry)
    return () => void listeners.delete(entry)
  }

  close() {
    if (this.state !== 'closed') this.#finish(null)
  }

  async #run() {
    const { signal } = this.#closed
    try {
      if (this.#tabs && !signal.aborted) return await this.#tabs.run(signal)
    } catch (error) {
      // Where storage is forbidden, so are locks and channels. A connection of its own is what such a page can have.
      if (!signal.aborted) report(error)
      this.#tabs = null
      this.#set({ ...this.#facts, role: 'alone' })
    }
    await this.#hold(signal)
  }

  /** Keep the connection, until it is told to stop or there can be none. */
  async #hold(signal) {
    const error = await this.#link.run(signal)
    if (!error) return
    // Whether a token counts is each tab's own business: the next one tries its own.
    if (error.status !== 401 && error.status !== 403) this.#tabs?.end(error)
    this.#finish(error)
  }

  #finish(error) {
    this.#error ??= error // a page may close a stream that is about to be closed, when it is told why
    if (error) this.#dispatch('error', error)
    error = this.#error
    this.#set({ state: 'closed', role: this.role, ...(error && { error }) })
    this.#closed.abort()
  }

  #notice(type) {
    const isBack = type === 'online' || (type === 'visibilitychange' && globalThis.document?.visibilityState !== 'hidden')
    if (isBack) this.#link.hurry()
    if (isBack || type !== 'visibilitychange') this.#tabs?.notice(type)
  }

  #host() {
    const deliver = (type, event) => {
      // Told first: what this tab's own page makes of it, or of the stream, is no business of the others.
      if (Object.hasOwn(TAKE, type)) this.#tabs?.tell(type, event)
      this.#dispatch(type, event)
    }
    const counted = (event, updates) => {
      for (const update of updates) this.#dispatch('order_batch_update', update)
      if (event.type === 'order_batch_catch_up') this.#dispatch(event.type, event)
    }
    const changed = (cause) => {
      this.#dispatch('totals', { totals: this.totals, position: this.position, cause })
      if (cause !== 'update') this.#tabs?.beat(true)
    }
    return {
      deliver,
      changed,
      finish: (error) => this.#finish(error),
      facts: () => ({ ...this.#facts, error: plain(this.#facts.error) }),
      role: (role) => role === this.role || this.#set({ ...this.#facts, role }),
      state: (state, facts = {}) => {
        const { delay_ms, error } = facts
        this.#set({ state, role: this.role, ...(delay_ms !== undefined && { delay_ms }), ...(error && { error }) })
        this.#tabs?.beat()
      },
      counted: (event, updates) => {
        this.#tabs?.tell(event.type, event)
        counted(event, updates)
      },
      /** From the tab that leads. Answers whether it could be followed. */
      heard: (type, event, base) => {
        if (!COUNTS.has(type)) return this.#dispatch(type, event) ?? true
        const updates = event.updates ?? [event]
        const { outcome } = base === this.#tally.base ? this.#tally.apply(event.id, event.after ?? event.stream.after, updates) : { outcome: 'gap' }
        if (outcome === 'applied') {
          counted(event, updates)
          changed('update')
        }
        return outcome !== 'gap'
      },
      taken: (snapshot) => {
        const after = this.position
        const updates = this.#tally.take(snapshot)
        if (updates === null) return changed('shared')
        if (updates.length === 0) return undefined
        const { position } = snapshot
        counted(updates.length === 1 ? updates[0] : { type: 'order_batch_catch_up', updates, after, id: position }, updates)
        return changed('update')
      },
    }
  }

  #set(facts) {
    const { state, role, delay_ms, error } = this.#facts
    if (state === 'closed') return
    if (facts.state === state && facts.role === role && facts.delay_ms === delay_ms && !facts.error === !error) return
    this.#facts = facts
    this.#dispatch('state', facts, true)
  }

  #dispatch(type, event, isLast = false) {
    const listeners = this.#listeners.get(type) ?? new Set()
    for (const entry of [...listeners]) {
      // What a listener does counts for those behind it: it may have closed the stream, or taken another one off.
      if (this.state === 'closed' && !isLast) return
      if (!listeners.has(entry)) continue
      try {
        entry.listener(event)
      } catch (error) {
        report(error)
      }
    }
  }
}

function checked({ url, userId, strategyIds, totals = true, token, auth = 'bearer', credentials, share, ...rest }) {
  const isId = (id) => Number.isSafeInteger(id) && id > 0
  if (strategyIds !== '*' && !(Array.isArray(strategyIds) && strategyIds.length && strategyIds.every(isId))) {
    throw new TypeError("strategyIds must be a list of ids, or '*'")
  }
  if (userId !== undefined && !isId(userId)) throw new TypeError('userId must be an id')
  if (!['bearer', 'session', 'ticket'].includes(auth)) throw new TypeError("auth must be 'bearer', 'session' or 'ticket'")
  const usual = { bearer: 'same-origin', session: 'include', ticket: 'omit' }[auth]
  const { maxFrameLength = MAX_FRAME_LENGTH, maxDelayMs = MAX_DELAY_MS } = rest
  const href = new URL(url, globalThis.location?.href).href
  return { url: href, userId, strategyIds, totals, token, auth, credentials: credentials ?? usual, share, maxFrameLength, maxDelayMs }
}

const scopeOf = ({ share, url, userId, strategyIds, totals }) =>
  JSON.stringify(['tallywire', 1, share, url, userId ?? null, strategyIds === '*' ? '*' : [...strategyIds].sort((a, b) => a - b), totals])

/** What a listener throws is its page's own mistake, to be seen as any other. */
function report(error) {
  if (globalThis.reportError) globalThis.reportError(error)
  else console.error(error)
}
