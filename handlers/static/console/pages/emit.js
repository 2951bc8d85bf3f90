// A batch sent by hand, or a steady flow of them: for trying what readers see. Only where the server's owner allows it.
import { lineChart } from '../charts.js'
import { badge, code, count, duration, el, empty, field, stat, table } from '../dom.js'
import { eventsOf } from '../event_stream.js'
import { curl } from '../openapi_document.js'

export const title = 'Test batch'

const PATH = '/internal/emit'
const MOST_ROWS = 50
const MOST_PER_SECOND = 20
const MOST_SECONDS = 60
const MOST_WAITING = 20 // batches of a flow that may wait for their answers
const DRAW_MS = 500
const SHOWN_SECONDS = 60
const SETTLE_MS = 3000 // how long what was sent may take to arrive, after the last answer

const ORDER_TYPES = [['LIMIT', 0.5], ['MARKET', 0.2], ['STOP_LIMIT', 0.2], ['STOP_MARKET', 0.1]]
const UNCOUNTED = 'order_amended'
const EVENT_TYPES = ['order_created', 'order_cancelled', UNCOUNTED]

const SKIPPED = 'Nothing in it counts: no result had success and an event type that is counted. So nothing was sent, and an idempotency key is still free.'
const DUPLICATE = 'This batch was accepted before under the same idempotency key. The answer is the first one’s; nothing was counted or sent again.'

export function mount(root, context) {
  if (!context.config.console_emit) {
    root.append(empty('Test batches are off',
      el('p', { text: 'A test batch counts like any other and readers see it, so whoever runs the server has to allow it:' }),
      code('tallywire serve --console-emit=on')))
    return
  }
  const form = batchForm(context)
  root.append(
    el('div', { class: 'columns' }, form.element, form.result),
    flowCard(context, form))
}

// ---- one batch

function batchForm(context) {
  const user = id(context.parameters.get('user_id') ?? '7')
  const strategy = id(context.parameters.get('strategy_id') ?? '3')
  const key = el('input', { type: 'text', autocomplete: 'off', spellcheck: 'false', maxlength: '128' })
  const rows = resultRows()
  const shell = el('div')
  const answer = el('div', { class: 'stack', 'aria-live': 'polite' },
    empty('Nothing sent yet', el('p', { text: 'What the server answers stands here: the position, what was counted, and how many connections are told.' })))
  const again = el('button', { type: 'button', hidden: true }, 'Send the same again')
  const send = el('button', { type: 'submit', class: 'primary' }, 'Send the batch')
  let last = null

  const keyed = () => ({ user_id: number(user.value), ...(strategy.value.trim() && { strategy_id: number(strategy.value) }) })
  const batch = () => ({ ...keyed(), batch_results: rows.results(), ...(key.value && { idempotency_key: key.value }) })
  const draw = () => {
    const body = JSON.stringify(batch())
    shell.replaceChildren(code(curl({
      method: 'POST',
      url: location.origin + PATH,
      headers: { 'Content-Type': 'application/json' },
      body,
      asksForKey: context.config.internal_auth === 'keys',
    })))
  }
  const remember = () => context.setParameters({ user_id: user.value.trim(), strategy_id: strategy.value.trim() })

  async function post(body) {
    last = body
    send.disabled = again.disabled = true
    const started = performance.now()
    try {
      const given = await context.api.request('POST', PATH, { body, signal: context.signal })
      answer.replaceChildren(answerView(given, body, performance.now() - started))
      context.announce(given.status === 'accepted' ? `Accepted at position ${given.position}${given.duplicate ? ', a duplicate' : ''}` : 'Skipped')
    } catch (error) {
      answer.replaceChildren(...[refusal(error, context)].filter(Boolean))
    }
    send.disabled = again.disabled = false
    again.hidden = false
  }

  again.addEventListener('click', () => post(last))
  const element = el('form', { class: 'card', novalidate: true, on: {
    submit: event => { event.preventDefault(); remember(); post(batch()) },
    input: draw,
    change: remember,
  } },
  el('h2', { text: 'The batch' }),
  el('div', { class: 'toolbar' }, field('User', user), field('Strategy', strategy)),
  rows.element,
  el('div', { class: 'toolbar' },
    el('div', { class: 'grow' }, field('Idempotency key (optional)', key)),
    el('button', { type: 'button', on: { click: () => { key.value = newKey(); draw() } } }, 'Make one')),
  el('div', { class: 'toolbar' }, send, again),
  el('details', {}, el('summary', { text: 'The same in a shell' }), shell))
  draw()
  const result = el('section', { class: 'card', 'aria-label': 'The answer' }, el('h2', { text: 'The answer' }), answer)
  return { element, result, keyed }
}

/** The results of the batch, a row each. A row more or less is an `input` event of the list. */
function resultRows() {
  const list = el('ol', { class: 'result-rows' })
  const add = el('button', { type: 'button' }, 'Add a result')
  const types = el('datalist', { id: 'order-types' }, ORDER_TYPES.map(([type]) => el('option', { value: type })))
  const count = () => list.children.length
  const number = () => {
    ;[...list.children].forEach((row, index) => row.number(index + 1))
    add.disabled = count() >= MOST_ROWS
    list.dispatchEvent(new Event('input', { bubbles: true }))
  }
  const append = result => list.append(resultRow(result, row => {
    const next = row.nextElementSibling ?? row.previousElementSibling
    row.remove()
    number()
    ;(next?.querySelector('button') ?? add).focus()
  }))
  const replace = results => {
    list.replaceChildren()
    results.forEach(append)
    number()
  }
  add.addEventListener('click', () => {
    append({ order_type: 'LIMIT', event_type: 'order_created', success: true })
    number()
    list.lastElementChild.querySelector('input').focus()
  })
  const buttons = el('div', { class: 'toolbar' }, add,
    el('button', { type: 'button', on: { click: () => replace(randomResults(10)) } }, 'Ten at random'),
    el('button', { type: 'button', on: { click: () => replace([]) } }, 'Remove all'))
  const element = el('fieldset', { class: 'plain stack' }, el('legend', { class: 'label', text: 'Results' }), types, list, buttons)
  for (const each of [['LIMIT', 'order_created'], ['STOP_LIMIT', 'order_cancelled']]) {
    append({ order_type: each[0], event_type: each[1], success: true })
  }
  number()
  return { element, results: () => [...list.children].map(row => row.result()) }
}

function resultRow({ order_type, event_type, success }, remove) {
  const type = el('input', { type: 'text', list: 'order-types', value: order_type, autocomplete: 'off', spellcheck: 'false' })
  const event = el('select', {}, EVENT_TYPES.map(each => el('option', { value: each, text: each === UNCOUNTED ? `${each} (ignored)` : each, selected: each === event_type })))
  const succeeded = el('input', { type: 'checkbox', checked: success })
  const gone = el('button', { type: 'button', class: 'quiet' }, 'Remove')
  const row = el('li', { class: 'result-row' }, type, event, el('label', { class: 'check' }, succeeded, 'success'), gone)
  gone.addEventListener('click', () => remove(row))
  row.number = place => {
    type.setAttribute('aria-label', `Order type of result ${place}`)
    event.setAttribute('aria-label', `Event type of result ${place}`)
    gone.setAttribute('aria-label', `Remove result ${place}`)
  }
  row.result = () => ({ order_type: type.value.trim(), event_type: event.value, success: succeeded.checked })
  return row
}

function randomResults(size) {
  return Array.from({ length: size }, () => ({
    order_type: weighted(ORDER_TYPES),
    event_type: weighted([['order_created', 0.65], ['order_cancelled', 0.35]]),
    success: Math.random() < 0.9,
  }))
}

function weighted(pairs) {
  let left = Math.random()
  return pairs.find(([, weight]) => (left -= weight) < 0)?.[0] ?? pairs[0][0]
}

// ---- the answer

function answerView(answer, body, milliseconds) {
  const { user_id: user, strategy_id: strategy } = body
  const raw = el('details', {}, el('summary', { text: 'As it came' }), code(JSON.stringify(answer, null, 2)))
  const head = (...badges) => el('div', { class: 'toolbar middle' }, badges, el('span', { class: 'muted', text: `answered in ${duration(milliseconds / 1000)}` }))
  if (answer.status !== 'accepted') {
    return el('div', { class: 'stack' }, head(badge('skipped', 'warn')), el('p', { text: SKIPPED }), ignored(answer), raw)
  }
  return el('div', { class: 'stack' },
    head(badge('accepted', 'good'), answer.duplicate && badge('duplicate', 'warn')),
    answer.duplicate && el('p', { text: DUPLICATE }),
    el('dl', { class: 'facts' },
      el('dt', { text: 'Position' }), el('dd', { class: 'mono', text: answer.position }),
      el('dt', { text: 'Connections' }), el('dd', { text: answer.connections === 0 ? '0: nobody is connected for this user and strategy now, whoever comes later can resume' : count(answer.connections) }),
      answer.idempotency_key && [el('dt', { text: 'Idempotency key' }), el('dd', {}, el('a', { class: 'mono', href: `#/lookup?${new URLSearchParams({ idempotency_key: answer.idempotency_key })}`, text: answer.idempotency_key }))]),
    ignored(answer),
    table('What was counted', [{ label: 'Order type' }, { label: 'Created', number: true }, { label: 'Cancelled', number: true }],
      answer.summaries.map(each => [each.order_type, count(each.created), count(each.cancelled)])),
    answer.invalid && el('div', { class: 'notice warn' }, el('p', { class: 'notice-title', text: 'Some results cannot be counted; the rest counted' }),
      el('ul', {}, answer.invalid.map(each => el('li', {}, el('code', { text: each.path }), ` ${each.message}`)))),
    el('div', { class: 'toolbar middle' },
      el('a', { href: `#/stream?user_id=${user}&strategy_id=${strategy}`, text: 'Watch this stream' }),
      el('a', { href: `#/lookup?user_id=${user}&strategy_id=${strategy}`, text: 'Look it up' })),
    raw)
}

const ignored = answer => answer.ignored > 0 &&
  el('p', { class: 'muted', text: `${count(answer.ignored)} ${answer.ignored === 1 ? 'result was' : 'results were'} ignored: of an event type that does not count.` })

/** What went wrong; where the key does not do, another one can be given. */
function refusal(error, context) {
  const notice = context.problem(error)
  if (error.code === 'forbidden') {
    notice.append(el('button', { type: 'button', on: { click: () => context.api.enterKey() } }, 'Use another key'))
  }
  return notice
}

// ---- a steady flow

function flowCard(context, form) {
  const perSecond = el('input', { type: 'number', min: '1', max: String(MOST_PER_SECOND), value: '5' })
  const seconds = el('input', { type: 'number', min: '1', max: String(MOST_SECONDS), value: '30' })
  const start = el('button', { type: 'submit', class: 'primary' }, 'Start')
  const stop = el('button', { type: 'button', hidden: true }, 'Stop')
  const progress = el('progress', { max: '1', value: '0', 'aria-label': 'Progress of the flow', hidden: true })
  const figures = {
    sent: stat('Batches accepted'), orders: stat('Orders counted'), arrived: stat('Orders arrived'), events: stat('Events arrived'),
  }
  const verdict = el('p', { class: 'muted', role: 'status', text: 'Not started.' })
  const chart = lineChart({
    label: 'Orders that arrived, by second',
    format: count,
    series: [{ label: 'Created', colour: 1, area: true }, { label: 'Cancelled', colour: 2 }],
    least: 10,
  })
  chart.element.hidden = true
  context.signal.addEventListener('abort', () => chart.destroy())
  const problems = el('div')

  async function run(event) {
    event.preventDefault()
    for (const [input, most] of [[perSecond, MOST_PER_SECOND], [seconds, MOST_SECONDS]]) {
      input.value = String(Math.min(most, Math.max(1, Math.round(Number(input.value)) || 1)))
    }
    const stopping = new AbortController()
    const stopNow = () => stopping.abort()
    stop.addEventListener('click', stopNow)
    start.disabled = true
    stop.hidden = progress.hidden = false
    stop.focus()
    problems.replaceChildren()
    verdict.textContent = 'The stream is opened, so that what is sent can be seen to arrive.'
    chart.element.hidden = false
    const flow = new Flow(context, form.keyed(), figures, AbortSignal.any([context.signal, stopping.signal]))
    try {
      await flow.run(Number(perSecond.value), Number(seconds.value), done => {
        progress.value = done
        verdict.textContent = flow.canSee ? 'Sending. What arrives is read from the stream of this user and strategy.' : 'Sending.'
      }, seen => chart.set(...seen))
      verdict.textContent = flow.verdict()
    } catch (error) {
      verdict.textContent = ''
      problems.replaceChildren(...[refusal(error, context)].filter(Boolean))
    }
    stop.removeEventListener('click', stopNow)
    start.disabled = false
    stop.hidden = progress.hidden = true
    if (!context.signal.aborted) start.focus()
  }

  return el('section', { class: 'card' },
    el('div', { class: 'card-head' }, el('h2', { text: 'A steady flow' }), el('p', { class: 'muted', text: 'Random batches of one to ten orders, for the user and the strategy above' })),
    el('form', { class: 'toolbar', novalidate: true, on: { submit: run } },
      field(`Batches a second (1 to ${MOST_PER_SECOND})`, perSecond), field(`Seconds (1 to ${MOST_SECONDS})`, seconds),
      el('div', { class: 'toolbar middle' }, start, stop, progress)),
    verdict, problems,
    el('dl', { class: 'stats' }, Object.values(figures).map(each => each.element)),
    chart.element,
    el('p', { class: 'hint' }, 'It stops when this page is left. To see it on charts meanwhile, open the ',
      el('a', { href: '#/overview', target: '_blank', rel: 'noopener', text: 'overview in another tab' }), '.'))
}

/** Sends at a pace, reads the stream of the same user and strategy, and compares. */
class Flow {
  constructor(context, keyed, figures, signal) {
    Object.assign(this, { context, keyed, figures, signal })
    this.sent = this.orders = this.arrived = this.events = this.refused = 0
    this.canSee = true
    this.failure = null
    this.reading = new AbortController()
    this.bySecond = new Map()
  }

  async run(perSecond, seconds, progress, draw) {
    const isOpen = await this.#open()
    if (!isOpen) this.canSee = false
    const drawing = setInterval(() => draw(this.#seen()), DRAW_MS)
    try {
      await this.#flow(perSecond, seconds, progress)
    } finally {
      clearInterval(drawing)
      this.reading.abort()
    }
    draw(this.#seen())
    if (this.failure) throw this.failure
  }

  async #flow(perSecond, seconds, progress) {
    const total = perSecond * seconds
    const started = performance.now()
    const waiting = new Set()
    for (let index = 0; index < total && !this.signal.aborted && !this.failure; index++) {
      await pause(started + (index * 1000) / perSecond - performance.now(), this.signal)
      // A server that is slower than this is given time, not more to do.
      while (waiting.size >= MOST_WAITING) await Promise.race(waiting)
      if (this.signal.aborted) break
      const sending = this.#send().finally(() => waiting.delete(sending))
      waiting.add(sending)
      progress((index + 1) / total)
    }
    await Promise.all(waiting)
    const deadline = performance.now() + SETTLE_MS
    while (this.canSee && this.arrived < this.orders && performance.now() < deadline) await pause(50, this.context.signal)
  }

  verdict() {
    if (this.context.signal.aborted) return ''
    if (!this.canSee) return 'Sent. What arrives could not be watched: that needs a key with the role read, and a user and a strategy that are ids.'
    return this.arrived === this.orders
      ? `Every order that was counted has arrived, once: ${count(this.orders)} in ${count(this.events)} events for ${count(this.sent)} batches.`
      : `Counted ${count(this.orders)} orders, seen ${count(this.arrived)}: somebody else may send batches for this user and strategy, too.`
  }

  /** Whether the stream is open: what is sent from then on arrives in it. */
  async #open() {
    const path = `/internal/stream?${new URLSearchParams(this.keyed)}`
    const signal = AbortSignal.any([this.context.signal, this.reading.signal])
    try {
      const response = await this.context.api.fetch(path, { headers: { Accept: 'text/event-stream' }, signal })
      if (!response.ok) return false
      const events = eventsOf(response)
      const first = await events.next()
      if (first.value?.event !== 'stream_open') return false
      this.#read(events)
      return true
    } catch (error) {
      if (error.code === 'key_needed') throw error
      return false
    }
  }

  async #read(events) {
    try {
      for await (const { event, data } of events) {
        if (event !== 'order_batch_update') continue
        const update = JSON.parse(data)
        this.events++
        this.#count((update.data ?? update).summaries)
        this.#show()
      }
    } catch { /* stopped, or cut: the verdict says what is missing */ }
  }

  #count(summaries) {
    const second = Math.floor(Date.now() / 1000)
    const seen = this.bySecond.get(second) ?? { created: 0, cancelled: 0 }
    for (const { created, cancelled } of summaries) {
      seen.created += created
      seen.cancelled += cancelled
    }
    this.bySecond.set(second, seen)
    this.arrived += ordersIn(summaries)
  }

  /** For the chart: the newest minute, the second that is not over yet left out. */
  #seen() {
    const now = Math.floor(Date.now() / 1000)
    const times = Array.from({ length: SHOWN_SECONDS }, (_, index) => now - SHOWN_SECONDS + index)
    return [times, ['created', 'cancelled'].map(name => times.map(second => this.bySecond.get(second)?.[name] ?? 0))]
  }

  async #send() {
    const body = { ...this.keyed, batch_results: [...randomResults(Math.floor(Math.random() * 10)), { order_type: 'LIMIT', event_type: 'order_created', success: true }] }
    try {
      // Not ended by Stop: what has left is waited for, so that the figures agree.
      const answer = await this.context.api.request('POST', PATH, { body, signal: this.context.signal })
      this.sent++
      this.orders += ordersIn(answer.summaries)
      this.#show()
    } catch (error) {
      this.failure ??= error
    }
  }

  #show() {
    this.figures.sent.set(count(this.sent))
    this.figures.orders.set(count(this.orders))
    this.figures.arrived.set(this.canSee ? count(this.arrived) : '–')
    this.figures.events.set(this.canSee ? count(this.events) : '–')
  }
}

const ordersIn = summaries => summaries.reduce((sum, each) => sum + each.created + each.cancelled, 0)

function pause(milliseconds, signal) {
  return new Promise(resolve => {
    const timer = setTimeout(resolve, Math.max(0, milliseconds))
    signal.addEventListener('abort', () => { clearTimeout(timer); resolve() }, { once: true })
  })
}

// ---- pieces

const id = value => el('input', { type: 'text', inputmode: 'numeric', autocomplete: 'off', value })

/** Also where pages are not secure enough for crypto.randomUUID: over plain HTTP from another machine. */
const newKey = () => `test-${Array.from(crypto.getRandomValues(new Uint8Array(10)), byte => byte.toString(16).padStart(2, '0')).join('')}`

/** A number where it is one; anything else is the server's to refuse. */
const number = text => (/^\d{1,16}$/.test(text.trim()) ? Number(text) : text)
