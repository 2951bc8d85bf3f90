// Who is connected, who is behind, and why streams ended: /internal/connections.
import { badge, bytes, code, count, duration, el, empty, field, stat, table } from '../dom.js'
import { curl } from '../openapi_document.js'
import { recent } from '../recent.js'

export const title = 'Connections'

const EVERY_MS = 2000

/** What the reasons of the reference mean, in a few words. */
const REASONS = {
  client_closed: 'the client went away',
  client_sent_data: 'the client sent something behind its request',
  reset: 'the network or the client cut it',
  stalled: 'read nothing for stall_seconds',
  draining: 'the server was stopping',
  rotation: 'open for max_age_seconds, asked to come back',
  busy: 'too much to do',
  token_expired: 'its token ended',
  revoked: 'its token was revoked',
  strategy_deleted: 'a strategy is no more',
  account_deactivated: 'the user is no more',
  fault: 'a fault of ours, see the log',
  connections: 'max_connections were open',
  streams_per_user: 'max_streams_per_user were open',
  streams_per_address: 'max_streams_per_address were open',
}
const STATES = { ready: '', blocked: 'warn', opening: 'info', closing: '' }

export function mount(root, context) {
  const user = el('input', { inputmode: 'numeric', pattern: '[0-9]*', placeholder: 'everyone', value: context.parameters.get('user_id') ?? '' })
  const pause = el('button', { type: 'button', 'aria-pressed': 'false', text: 'Pause' })
  const figures = { open: stat('Open'), behind: stat('Behind'), blocked: stat('Not reading'), delayed: stat('Accepts delayed'), loop: stat('Loop lag, 10 s') }
  const slowest = table('Connections, the slowest first', [
    { label: 'User' }, { label: 'Strategies' }, { label: 'State' }, { label: 'Batches behind', number: true },
    { label: 'Unsent', number: true }, { label: 'Open for', number: true }, { label: 'From' }, { label: 'Position' },
  ], [])
  const none = el('div')
  const note = el('p', { class: 'hint' })
  const closed = barList('No stream has ended yet.')
  const refused = barList('No stream was refused.')
  const trouble = el('div')
  root.append(
    trouble,
    el('form', { class: 'toolbar', on: { submit: event => { event.preventDefault(); ask() } } },
      field('User', user), el('button', { type: 'submit', text: 'Show' }), pause),
    el('dl', { class: 'stats', 'aria-label': 'Now' }, Object.values(figures).map(each => each.element)),
    el('section', { class: 'card' }, el('div', { class: 'card-head' }, el('h2', { text: 'Slowest first' }), note), slowest, none),
    el('div', { class: 'columns' },
      el('section', { class: 'card' }, el('div', { class: 'card-head' }, el('h2', { text: 'Ended, by reason' }), el('span', { class: 'hint', text: 'since the start' })), closed.element),
      el('section', { class: 'card' }, el('div', { class: 'card-head' }, el('h2', { text: 'Refused for load' }), el('span', { class: 'hint', text: 'since the start' })), refused.element)),
  )

  let isPaused = false
  // Not what is being typed: half an id is somebody else's.
  let whose = user.value.trim()
  const poll = context.poll(EVERY_MS, async signal => {
    if (isPaused) return
    try {
      const asked = whose
      const report = await context.api.get('/internal/connections', { user_id: asked }, { signal })
      if (asked === whose) draw(report)
      trouble.replaceChildren()
      root.classList.remove('is-stale')
    } catch (error) {
      if (error.name === 'AbortError') return
      root.classList.add('is-stale')
      if (trouble.dataset.message !== error.message || !trouble.firstChild) trouble.replaceChildren(context.problem(error))
      trouble.dataset.message = error.message
    }
  })

  function ask() {
    whose = user.value.trim()
    if (whose) recent.user_id = whose
    context.setParameters(whose ? { user_id: whose } : {})
    trouble.replaceChildren()
    poll.now()
  }
  user.addEventListener('change', ask)
  pause.addEventListener('click', () => {
    isPaused = !isPaused
    pause.textContent = isPaused ? 'Go on' : 'Pause'
    pause.setAttribute('aria-pressed', String(isPaused))
    if (!isPaused) poll.now()
  })

  function draw(report) {
    figures.open.set(count(report.connections), '', whose ? `of user ${whose}` : 'of everyone')
    figures.behind.set(count(report.lagging), report.lagging ? 'warn' : '', report.lagging ? 'get one merged event' : 'everyone is up to date')
    figures.blocked.set(count(report.blocked), '', 'sockets that are full')
    figures.delayed.set(count(report.accepts_delayed), '', 'clients made to wait')
    figures.loop.set(duration(report.loop.lag_ms_recent_max / 1000), report.loop.lag_ms_recent_max > 50 ? 'warn' : '', `worst ${duration(report.loop.lag_ms_max / 1000)}`)
    const listed = report.slowest.length
    slowest.hidden = listed === 0
    note.textContent = listed < report.connections ? `${listed} of ${count(report.connections)}` : ''
    slowest.setRows(report.slowest.map(each => [
      el('a', { href: `#/lookup?user_id=${each.user_id}`, text: String(each.user_id), 'aria-label': `Look user ${each.user_id} up` }),
      strategies(each.strategies),
      badge(each.state, STATES[each.state]),
      count(each.behind_batches),
      each.unsent_bytes ? bytes(each.unsent_bytes) : '0',
      duration(each.age_seconds),
      el('span', { class: 'mono', text: each.peer }),
      el('span', { class: 'mono muted', text: each.position ?? '' }),
    ]))
    if (listed) none.replaceChildren()
    else if (!none.firstChild || none.dataset.user !== whose) none.replaceChildren(nobody(whose, context.config))
    none.dataset.user = whose
    closed.draw(report.closed)
    refused.draw(report.refused)
  }
}

const strategies = list =>
  Array.isArray(list) ? (list.length > 6 ? `${list.slice(0, 6).join(', ')} and ${list.length - 6} more` : list.join(', ')) : String(list ?? '*')

function nobody(user_id, config) {
  const url = `/internal/stream?user_id=${user_id || 7}&strategy_id=*`
  return empty(user_id ? `User ${user_id} is not connected` : 'Nobody is connected',
    el('p', {}, 'Open a stream in the ', el('a', { href: `#/stream?user_id=${user_id || 7}&strategy_id=*`, text: 'stream inspector' }), ', or in a terminal:'),
    code(curl({ method: 'GET', url: location.origin + url, isStream: true, asksForKey: config.internal_auth === 'keys' })))
}

/** Counts by name as bars, the highest first, drawn again without losing the place of the reader. */
function barList(none) {
  const element = el('div')
  let drawn = ''
  const draw = counts => {
    const rows = Object.entries(counts).filter(([, times]) => times > 0).sort(([, one], [, other]) => other - one)
    if (drawn === JSON.stringify(rows)) return
    drawn = JSON.stringify(rows)
    const most = rows[0]?.[1] ?? 1
    element.replaceChildren(rows.length === 0
      ? el('p', { class: 'muted', text: none })
      : el('ul', { class: 'bars' }, rows.map(([reason, times]) => {
        const bar = el('div', { class: 'bar' })
        bar.style.width = `${Math.max(0.5, 100 * times / most)}%`
        return el('li', {},
          el('code', { text: reason }), el('span', { class: 'bars-number', text: count(times) }),
          el('div', { class: 'bar-back' }, bar), el('span', { class: 'hint', text: REASONS[reason] ?? '' }))
      })))
  }
  draw({})
  return { element, draw }
}
