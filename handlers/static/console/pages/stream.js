// What one stream brings, as it comes: events raw and decoded, position, resets, gaps, and own sums beside the totals that
// the server states. It reads with the browser client, like any page.
import { badge, clock, code, count, duration, el, empty, field, stat } from '../dom.js'
import { curlEmit } from '../examples.js'
import { connectedUsers, recent } from '../recent.js'
import { TallywireStream } from '../tallywire.js'

export const title = 'Stream inspector'

const MOST_EVENTS = 500
const ROWS_A_FRAME = 60
const KINDS = {
  order_batch_catch_up: 'warn',
  stream_open: 'good',
  stream_reset: 'bad',
  stream_closing: 'bad',
  stream_expiring: 'warn',
}
const STATES = { connecting: ['Connecting', 'info'], open: ['Open', 'good'], waiting: ['Waiting', 'warn'], closed: ['Closed', ''] }

export function mount(root, context) {
  const given = context.parameters
  const user = el('input', { inputmode: 'numeric', required: true, placeholder: 'id', value: given.get('user_id') ?? recent.user_id, list: 'stream-users' })
  const strategies = el('input', { required: true, value: given.getAll('strategy_id').join(', ') || recent.strategy_id || '*' })
  const users = el('datalist', { id: 'stream-users' })
  const connect = el('button', { type: 'submit', class: 'primary', text: 'Connect' })
  const cut = el('button', { type: 'button', text: 'Disconnect', disabled: true })
  const state = badge('Not connected')
  context.actions.append(state)
  const trouble = el('div')
  const law = el('div')
  const figures = figuresOf()
  const sums = sumsOf()
  const list = listOf()
  const welcome = empty('Watch a stream',
    el('p', {}, 'Say whose, and which strategies: ids with commas between them, or * for every one. Events appear here as they arrive.'))
  const open = el('div', { class: 'page', hidden: true }, figures.element,
    el('div', { class: 'columns wide-left' }, list.element, sums.element))
  root.append(
    el('form', { class: 'toolbar', on: { submit: event => { event.preventDefault(); start(null) } } },
      field('User', user), field('Strategies', strategies), users, connect, cut),
    trouble, law, welcome, open)
  connectedUsers(context.api, context.signal)
    .then(ids => users.replaceChildren(...ids.map(id => el('option', { value: String(id) }))))
    .catch(() => {}) // only suggestions; the stream itself will say what is wrong

  let stream = null
  let resumable = null
  let listensTo = ['', '']

  function start(from) {
    let strategyIds
    try {
      strategyIds = strategiesOf(strategies.value)
    } catch (error) {
      trouble.replaceChildren(context.problem(error))
      return
    }
    stream?.close()
    stream = null
    const userId = Number(user.value)
    recent.user_id = user.value.trim()
    recent.strategy_id = strategies.value.trim()
    listensTo = [recent.user_id, recent.strategy_id]
    context.setParameters([['user_id', recent.user_id], ...[strategyIds].flat().map(id => ['strategy_id', id])])
    if (from === null) {
      figures.reset()
      sums.reset()
      list.clear()
    } else list.mark('Resumed from the position below')
    trouble.replaceChildren()
    law.replaceChildren()
    cut.disabled = true
    cut.textContent = 'Disconnect'
    resumable = null
    try {
      stream = new TallywireStream({ url: '/internal/stream', userId, strategyIds, from, environment: { fetch: fetchWithKey(context.api) } })
    } catch (error) {
      trouble.replaceChildren(context.problem(error))
      state.className = 'badge'
      state.textContent = 'Not connected'
      return
    }
    welcome.hidden = true
    open.hidden = false
    cut.disabled = false
    follow(stream)
  }

  function follow(mine) {
    const only = listener => event => { if (mine === stream) listener(event) }
    const listeners = {
      frame(frame) {
        figures.frame(frame)
        const decoded = decode(frame)
        if (decoded) {
          sums.state(decoded)
          list.add(frame, decoded)
        }
      },
      totals: ({ totals, position }) => {
        sums.own(totals)
        figures.position(position)
      },
      gap: ({ noticed_by, position, stated }) => {
        figures.add('gaps')
        list.mark(`Gap: a frame between ${position} and ${stated} is missing, noticed by ${noticed_by}; the stream resumes`)
      },
      mismatch: ({ strategy_id }) => {
        figures.add('mismatches')
        list.mark(`Mismatch: own sums of strategy ${strategy_id} were not what the server states`)
      },
      state: change => show(change),
      error: error => {
        if (error.kind !== 'closing') list.mark(`${error.message}${error.final ? '' : '; it will try again'}`)
        if (error.final) trouble.replaceChildren(context.problem(error.problem ? Object.assign(new Error(error.message), error.problem) : error))
      },
    }
    for (const [type, listener] of Object.entries(listeners)) mine.on(type, only(listener))
    show({ state: mine.state })
  }

  function show({ state: now, delay_ms }) {
    const [text, kind] = STATES[now]
    state.className = `badge ${kind}`
    state.textContent = now === 'waiting' && delay_ms ? `Tries again in ${duration(delay_ms / 1000)}` : text
    context.announce(`Stream: ${text.toLowerCase()}`)
    connect.textContent = now === 'closed' ? 'Connect' : 'Connect anew'
  }

  cut.addEventListener('click', () => {
    if (resumable) {
      // Sums go on only for whom they were counted, whatever has been typed since.
      [user.value, strategies.value] = listensTo
      start(resumable)
      return
    }
    resumable = stream.snapshot()
    const { position } = stream
    stream.close()
    stream = null
    state.className = 'badge'
    state.textContent = 'Disconnected'
    context.announce('Stream: disconnected')
    list.mark(position ? `Disconnected at ${position}` : 'Disconnected')
    cut.textContent = 'Resume'
    cut.disabled = resumable === null
    connect.textContent = 'Connect'
    if (resumable) law.replaceChildren(howToMiss(context.config, ...listensTo))
  })

  if (given.get('user_id')) start(null)
  return () => {
    stream?.close()
    stream = null
    list.stop()
  }
}

/** `3, 4` or `*`. */
function strategiesOf(text) {
  const parts = text.split(/[\s,]+/).filter(Boolean)
  if (parts.includes('*')) return '*'
  const ids = parts.map(Number)
  if (!ids.length || !ids.every(id => Number.isSafeInteger(id) && id > 0)) {
    throw Object.assign(new Error('Write ids with commas between them, for example 3, 4, or * for every strategy.'), { title: 'Which strategies?' })
  }
  return ids
}

/** A refusal for want of a key is an answer, too: the client would take an exception for a broken network. */
const fetchWithKey = api => async (url, init) => {
  try {
    return await api.fetch(url, init)
  } catch (error) {
    if (error.status !== 401) throw error
    const { title, status, detail, code } = error
    return Response.json({ title, status, detail, code }, { status, headers: { 'Content-Type': 'application/problem+json' } })
  }
}

function howToMiss(config, user_id, strategies) {
  const strategy_id = strategies.split(',')[0] === '*' ? 3 : strategies.split(',')[0]
  return el('div', { class: 'notice' },
    el('p', { class: 'notice-title', text: 'Nothing is lost while you are away' }),
    el('p', { text: 'Emit a few batches now, then resume: whatever was counted meanwhile arrives as one event, the difference of two totals.' }),
    code(curlEmit(config, { user_id, strategy_id })))
}

// ---- decoding

/** What an inspector shows of a frame: {text, strategies, batches, updates}. Null for a block without an event. */
function decode({ data }) {
  if (data === null) return null
  let body
  try {
    body = JSON.parse(data)
  } catch {
    return { text: 'not JSON', updates: [] }
  }
  const updates = body.updates ?? (body.type === 'order_batch_update' ? [body] : [])
  if (updates.length) {
    return {
      updates,
      batches: updates.reduce((sum, each) => sum + each.stream.batches, 0),
      text: updates.map(each => `${updates.length > 1 ? `${each.stream.strategy_id}: ` : ''}${counts(each.data.summaries)}`).join(' · '),
      strategies: updates.map(each => each.stream.strategy_id).join(', '),
    }
  }
  return { updates: [], ...controlText(body) }
}

const counts = summaries => summaries.map(({ order_type, created, cancelled }) =>
  [order_type, created && `+${created}`, cancelled && `−${cancelled}`].filter(Boolean).join('\u00a0')).join(', ')

function controlText({ type, data = {} }) {
  switch (type) {
    case 'stream_open': return { text: data.resumed ? 'resumed without loss' : 'started', stated: data.totals }
    case 'stream_reset': return { text: `reason ${data.reason}: these totals replace the sums`, stated: data.totals }
    case 'stream_closing': return { text: `reason ${data.reason}, ${data.reconnect ? 'come back' : 'for good'}` }
    case 'stream_expiring': return { text: `in ${data.seconds_left} s` }
    case 'stream_heartbeat': return { text: `at ${data.position}` }
    case 'order_hourly_summary': return { text: counts(data.summaries ?? []), strategies: String(data.strategy_id) }
    default: return { text: '' }
  }
}

// ---- figures

function figuresOf() {
  const figures = {
    frames: stat('Updates'), batches: stat('Batches'), merged: stat('Merged'), resets: stat('Resets'),
    gaps: stat('Gaps'), mismatches: stat('Mismatches'), heard: stat('Heartbeats'),
  }
  const place = el('code')
  const element = el('div', { class: 'stack' },
    el('dl', { class: 'stats many', 'aria-label': 'Of this stream' }, Object.values(figures).map(each => each.element)),
    el('p', { class: 'position' }, el('span', { class: 'muted', text: 'Position ' }), place))
  let known
  const draw = () => {
    figures.frames.set(count(known.frames))
    figures.batches.set(count(known.batches))
    figures.merged.set(count(known.merged), '', 'of several batches')
    figures.resets.set(count(known.resets), known.resets ? 'warn' : '')
    figures.gaps.set(count(known.gaps), known.gaps ? 'bad' : '', 'repaired at once')
    figures.mismatches.set(count(known.mismatches), known.mismatches ? 'bad' : '', 'must be 0')
    figures.heard.set(count(known.heard), '', known.heardAt ? `last ${clock(known.heardAt)}` : '')
  }
  const reset = () => {
    known = { frames: 0, batches: 0, merged: 0, resets: 0, gaps: 0, mismatches: 0, heard: 0, heardAt: 0 }
    place.textContent = '–'
    draw()
  }
  reset()
  return {
    element,
    reset,
    position: position => { place.textContent = position },
    add: name => {
      known[name] += 1
      draw()
    },
    frame({ event, data }) {
      if (event === 'stream_reset') known.resets += 1
      if (event === 'stream_heartbeat') {
        known.heard += 1
        known.heardAt = Date.now()
      }
      const { updates, batches = 0 } = decode({ data }) ?? { updates: [] }
      if (updates.length) {
        known.frames += 1
        known.batches += batches
        known.merged += batches > 1 ? 1 : 0
      }
      draw()
    },
  }
}

// ---- sums

function sumsOf() {
  const verdict = badge('')
  const caption = 'Own sums beside the totals that the server states'
  const rows = el('tbody')
  const numbers = ['created', 'stated', 'cancelled', 'stated']
  const compared = el('div', { class: 'scroller', tabindex: '0', role: 'region', 'aria-label': caption },
    el('table', { class: 'data compact' },
      el('caption', { class: 'visually-hidden', text: caption }),
      el('thead', {}, el('tr', {}, el('th', { scope: 'col', text: 'Order type' }), numbers.map(text => el('th', { scope: 'col', class: 'number', text })))),
      rows))
  const element = el('section', { class: 'card' },
    el('div', { class: 'card-head' }, el('h2', { text: 'Own sums and stated totals' }), verdict), compared,
    el('p', { class: 'hint', text: 'Own: added up here, event by event. Stated: what the server said last, with totals=1.' }))
  let own = new Map()
  let stated = new Map()
  let isAsked = false
  const draw = () => {
    isAsked = false
    const keys = [...new Set([...own.keys(), ...stated.keys()])].sort((one, other) => one - other)
    let differs = 0
    const cells = keys.flatMap(strategy => {
      const [mine, theirs] = [byType(own.get(strategy)), byType(stated.get(strategy))]
      const types = [...new Set([...Object.keys(mine), ...Object.keys(theirs)])].sort()
      return types.length === 0 ? [] : [groupRow(`Strategy ${strategy}`), ...types.map(type => {
        const [one, other] = [mine[type] ?? NONE, theirs[type] ?? NONE]
        differs += one.created === other.created && one.cancelled === other.cancelled ? 0 : 1
        return el('tr', {}, el('th', { scope: 'row', text: type }),
          ['created', 'cancelled'].flatMap(counted => [number(count(one[counted])), number(statedCell(one[counted], other[counted]))]))
      })]
    })
    rows.replaceChildren(...(cells.length ? cells : [groupRow('Nothing was counted yet')]))
    verdict.className = `badge ${cells.length === 0 ? '' : differs ? 'bad' : 'good'}`
    verdict.textContent = cells.length === 0 ? 'nothing to compare' : differs ? `${differs} differ` : 'equal'
  }
  const soon = () => {
    if (isAsked) return
    isAsked = true
    requestAnimationFrame(draw)
  }
  draw()
  return {
    element,
    reset() {
      own = new Map()
      stated = new Map()
      soon()
    },
    own(totals) {
      own = totals
      soon()
    },
    state({ updates, stated: all }) {
      if (all) stated = new Map(all.map(({ strategy_id, summaries }) => [strategy_id, summaries]))
      for (const { stream } of updates) if (stream.totals) stated.set(stream.strategy_id, stream.totals)
      soon()
    },
  }
}

const number = child => el('td', { class: 'number' }, child)
const groupRow = text => el('tr', {}, el('th', { scope: 'rowgroup', colspan: 5, class: 'group', text }))
const statedCell = (own, stated) => (own === stated ? el('span', { class: 'muted', text: count(stated) }) : badge(count(stated), 'bad'))
const NONE = { created: 0, cancelled: 0 }
const byType = (summaries = []) => Object.fromEntries(summaries.map(each => [each.order_type, each]))

// ---- the list

function listOf() {
  const rows = el('ol', { class: 'events', tabindex: '0', 'aria-label': 'Events, the newest first' })
  const heartbeats = el('input', { type: 'checkbox', id: 'stream-heartbeats' })
  const pause = el('button', { type: 'button', 'aria-pressed': 'false', text: 'Pause' })
  const clear = el('button', { type: 'button', text: 'Clear' })
  const note = el('span', { class: 'hint' })
  const element = el('section', { class: 'card' },
    el('div', { class: 'card-head' }, el('h2', { text: 'Events' }), note,
      el('div', { class: 'toolbar middle' }, el('label', { class: 'check', for: 'stream-heartbeats' }, heartbeats, 'Heartbeats'), pause, clear)),
    rows)
  let waiting = []
  let isPaused = false
  let asked = null
  let seen = 0

  const draw = () => {
    asked = null
    if (isPaused) {
      note.textContent = `${count(waiting.length)}${waiting.length === MOST_EVENTS ? ' or more' : ''} held back`
      return
    }
    const next = waiting.slice(-MOST_EVENTS)
    // A flood is drawn in portions, so that the page stays at hand.
    waiting = next.splice(ROWS_A_FRAME)
    rows.prepend(...next.map(make => make()).reverse())
    while (rows.childElementCount > MOST_EVENTS) rows.lastElementChild.remove()
    note.textContent = seen > MOST_EVENTS ? `the newest ${MOST_EVENTS} of ${count(seen)}` : ''
    if (waiting.length) soon()
  }
  const soon = () => { asked ??= requestAnimationFrame(draw) }
  const push = make => {
    waiting.push(make)
    seen += 1
    if (waiting.length > MOST_EVENTS) waiting.shift()
    soon()
  }
  pause.addEventListener('click', () => {
    isPaused = !isPaused
    pause.textContent = isPaused ? 'Go on' : 'Pause'
    pause.setAttribute('aria-pressed', String(isPaused))
    soon()
  })
  const empties = () => {
    waiting = []
    seen = 0
    rows.replaceChildren()
    note.textContent = ''
  }
  clear.addEventListener('click', empties)
  return {
    element,
    clear: empties,
    stop: () => cancelAnimationFrame(asked),
    mark(text) {
      const at = Date.now()
      push(() => el('li', { class: 'mark' }, el('time', { text: clock(at, true) }), ' ', text))
    },
    add(frame, decoded) {
      if (frame.event === 'stream_heartbeat' && !heartbeats.checked) return
      const at = Date.now()
      push(() => el('li', {}, el('details', {},
        el('summary', {},
          el('time', { text: clock(at, true) }),
          el('span', { class: 'event-name' },
            KINDS[frame.event] ? badge(frame.event, KINDS[frame.event]) : el('code', { text: frame.event }),
            decoded.strategies && el('span', { text: `${decoded.strategies.includes(',') ? 'strategies' : 'strategy'} ${decoded.strategies}` }),
            decoded.batches > 1 && badge(`${count(decoded.batches)} batches in one`, 'good')),
          el('span', { class: 'event-text', text: decoded.text })),
        el('pre', { tabindex: '0', 'aria-label': 'As it came', text: frame.raw }))))
    },
  }
}
