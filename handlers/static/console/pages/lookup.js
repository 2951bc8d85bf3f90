// "What happened to user 7?": its stream keys, its batches, its connections; or one batch, by its idempotency key.
import { badge, clock, count, duration, el, empty, field, stat, table } from '../dom.js'

export const title = 'Look-up'

const ROWS_SHOWN = 100 // more of them on request: a table of thousands is no use, and slow
const HOUR_MS = 3_600_000
const RANGES = [
  { name: 'hour', label: 'the hour up to the newest', ms: HOUR_MS },
  { name: 'day', label: 'the day up to the newest', ms: 24 * HOUR_MS },
  { name: 'all', label: 'all that is kept' },
  { name: 'span', label: 'a span of time' },
]

export function mount(root, context) {
  const { parameters } = context
  const user = input({ value: parameters.get('user_id') ?? '', inputmode: 'numeric', required: true })
  const strategy = input({ value: parameters.get('strategy_id') ?? '', inputmode: 'numeric', placeholder: 'all of them' })
  const key = input({ value: parameters.get('idempotency_key') ?? '', required: true, maxlength: 128 })
  const results = el('div', { class: 'page' })
  root.append(
    el('div', { class: 'columns' },
      form('By user', () => context.navigate('lookup', given({ user_id: user.value, strategy_id: strategy.value })),
        field('User', user), field('Strategy', strategy)),
      form('By idempotency key', () => context.navigate('lookup', { idempotency_key: key.value }),
        el('div', { class: 'grow' }, field('Idempotency key', key)))),
    results)

  if (key.value) return guarded(results, context, () => showKey(results, context, key.value))
  if (user.value) return guarded(results, context, () => showUser(results, context, user.value.trim(), strategy.value.trim()))
  results.append(empty('Whose batches?',
    el('p', { text: 'A user shows its strategies with their totals, the batches that were accepted, and who is connected. An idempotency key shows whether its batch was accepted, and what was counted.' })))
}

const input = properties => el('input', { type: 'text', autocomplete: 'off', spellcheck: 'false', ...properties })
const given = parameters => Object.fromEntries(Object.entries(parameters).map(([name, value]) => [name, value.trim()]).filter(([, value]) => value))

function form(name, submit, ...fields) {
  return el('form', { class: 'card', on: { submit: event => { event.preventDefault(); submit() } } },
    el('h2', { text: name }), el('div', { class: 'toolbar' }, fields, el('button', { type: 'submit', class: 'primary' }, 'Look up')))
}

/** What goes wrong stands where the results would. */
async function guarded(results, context, show) {
  try {
    await show()
  } catch (error) {
    const notice = context.problem(error)
    if (notice) results.append(notice)
  }
}

// ---- an idempotency key

async function showKey(results, context, key) {
  const { batches } = await context.api.get('/internal/batches', { idempotency_key: key }, { signal: context.signal })
  context.announce(batches.length ? `${batches.length} accepted under this key` : 'Nothing is remembered under this key')
  if (!batches.length) {
    results.append(empty('Nothing was accepted under this key',
      el('p', { class: 'mono wrapped', text: key }),
      el('p', { text: 'Nothing is remembered under it within the window (24 hours, unless the server was set otherwise), and its user was not deleted since. So the batch can be emitted again, with the same key.' })))
    return
  }
  if (batches.length > 1) {
    results.append(el('p', { class: 'muted', text: 'Several callers used this key. Keys of different callers never meet: each has a batch of its own.' }))
  }
  results.append(...batches.map(batch => el('section', { class: 'card', 'aria-label': `Batch of ${batch.caller}` },
    el('div', { class: 'card-head' }, el('h2', { text: 'Accepted, and counted once' }), badge('accepted', 'good')),
    facts([
      ['Idempotency key', el('span', { class: 'mono wrapped', text: batch.idempotency_key })],
      ['Sent by', el('span', { class: 'wrapped', text: batch.caller })],
      ['Accepted', moment(batch.timestamp)],
      ['User', userLink(batch.user_id)],
      ['Strategy', keyLink(batch.user_id, batch.strategy_id)],
      ['Position', position(batch.position)],
      ['Ignored', `${count(batch.ignored)} ${batch.ignored === 1 ? 'result' : 'results'} of an event type that does not count`],
    ]),
    summaryTable(`What was counted in the batch of ${batch.caller}`, batch.summaries),
    el('p', { class: 'hint', text: 'Sent again with this key, the same batch is answered the same and counts nothing.' }))))
}

// ---- a user

async function showUser(results, context, userId, strategyId) {
  const asked = { signal: context.signal }
  const path = `/internal/keys/${encodeURIComponent(userId)}`
  const [keys, connections] = await Promise.all([
    strategyId ? context.api.get(`${path}/${encodeURIComponent(strategyId)}`, {}, asked) : context.api.get(path, {}, asked),
    context.api.get('/internal/connections', { user_id: userId }, asked),
  ])
  if (strategyId) showStrategy(results, context, keys)
  else showKeys(results, context, keys)
  results.append(connectionsCard(userId, connections))
  context.announce(`User ${userId}: ${strategyId ? `${count(keys.batches)} batches` : `${keys.keys.length} strategies`}, ${connections.connections} connections`)
}

function showKeys(results, context, report) {
  const userId = report.user_id
  if (!report.keys.length) {
    results.append(empty(`Nothing was ever accepted for user ${userId}`,
      el('p', { text: 'Or everything of it was deleted since. Batches that an order service sent and that were skipped or refused leave nothing here: look in its own log, and in the log of this server by request id.' })))
    return
  }
  const keys = [...report.keys]
  const list = table(`Strategies of user ${userId}`, [
    { label: 'Strategy' }, { label: 'Created', number: true }, { label: 'Cancelled', number: true }, { label: 'Order types' },
    { label: 'Batches', number: true }, { label: 'Connections', number: true }, { label: 'Last accepted' },
    { label: 'Newest position' }, { label: 'Oldest kept' },
  ], rowsOf(keys))
  const summary = el('p', { class: 'muted' })
  const more = el('button', { type: 'button', hidden: !report.has_more, on: { click: () => next() } }, 'Show more strategies')
  const say = () => { summary.textContent = `${count(keys.length)} ${keys.length === 1 ? 'strategy' : 'strategies'}${report.has_more ? ' so far' : ''}` }
  say()
  const next = busyWhile(more, context, async () => {
    report = await context.api.get(`/internal/keys/${userId}`, { after: keys.at(-1).strategy_id }, { signal: context.signal })
    keys.push(...report.keys)
    list.setRows(rowsOf(keys))
    more.hidden = !report.has_more
    say()
  })
  results.append(el('section', { class: 'card' },
    el('div', { class: 'card-head' }, el('h2', { text: `Strategies of user ${userId}` }), summary), list,
    el('div', { class: 'toolbar middle' }, more,
      el('a', { href: `#/stream?user_id=${userId}&strategy_id=*`, text: 'Watch all of it' }),
      el('a', { href: `#/hours?user_id=${userId}`, text: 'Its hours' }))))
}

const rowsOf = keys => keys.map(key => [
  keyLink(key.user_id, key.strategy_id), count(sum(key.totals, 'created')), count(sum(key.totals, 'cancelled')),
  key.totals.map(each => each.order_type).join(', '), count(key.batches), count(key.connections),
  moment(key.last_accepted), position(key.head), position(key.oldest_kept),
])

function showStrategy(results, context, key) {
  const { user_id: userId, strategy_id: strategyId } = key
  const figures = [
    ['Created', count(sum(key.totals, 'created'))], ['Cancelled', count(sum(key.totals, 'cancelled'))],
    ['Batches', count(key.batches)], ['Connections', count(key.connections)],
  ].map(([label, value]) => {
    const figure = stat(label)
    figure.set(value)
    return figure.element
  })
  const card = el('section', { class: 'card' },
    el('div', { class: 'card-head' }, el('h2', { text: `User ${userId}, strategy ${strategyId}` }), userLink(userId, 'All strategies of the user')),
    el('dl', { class: 'stats' }, figures))
  results.append(card)
  if (!key.head) {
    card.append(el('p', { class: 'muted', text: 'Nothing was ever accepted for this strategy, or the user was deleted since.' }))
    return
  }
  card.append(
    facts([['Last accepted', moment(key.last_accepted)], ['Newest position', position(key.head)], ['Oldest kept', position(key.oldest_kept)]]),
    summaryTable('Totals since the journal began', key.totals, { visibleCaption: true }),
    el('div', { class: 'toolbar middle' },
      el('a', { href: `#/stream?user_id=${userId}&strategy_id=${strategyId}`, text: 'Watch it live' }),
      el('a', { href: `#/hours?user_id=${userId}&strategy_id=${strategyId}`, text: 'Its hours' }),
      context.config.console_emit && el('a', { href: `#/emit?user_id=${userId}&strategy_id=${strategyId}`, text: 'Send a test batch' })))
  results.append(batchesCard(context, key))
}

// ---- batches

function batchesCard(context, key) {
  const range = el('select', {}, RANGES.map(each => el('option', { value: each.name, text: each.label })))
  const from = el('input', { type: 'datetime-local', step: '1' })
  const to = el('input', { type: 'datetime-local', step: '1' })
  const span = [field('From', from), field('To', to, 'Not included.')]
  const shown = el('div', { 'aria-live': 'polite' })
  const showSpan = () => { for (const each of span) each.hidden = range.value !== 'span' }
  showSpan()

  const ask = async () => {
    const { user_id, strategy_id } = key
    // Each question has a place of its own: an answer to an older one is shown to nobody.
    const answer = el('div', { class: 'stack start' })
    shown.replaceChildren(answer)
    try {
      await listBatches(context, { user_id, strategy_id, ...times() }, answer)
    } catch (error) {
      answer.replaceChildren(...[context.problem(error)].filter(Boolean))
    }
  }
  const times = () => {
    if (range.value === 'span') return { from: utc(from.value), to: utc(to.value) }
    const { ms } = RANGES.find(each => each.name === range.value)
    // Back from the newest one: the key may have been quiet for days.
    return ms ? { from: new Date(Date.parse(key.last_accepted) - ms).toISOString() } : {}
  }
  range.addEventListener('change', () => { showSpan(); if (range.value !== 'span') ask() })
  ask()
  return el('section', { class: 'card' }, el('h2', { text: 'Batches' }),
    el('form', { class: 'toolbar', on: { submit: event => { event.preventDefault(); ask() } } },
      field('Which', range), span, el('button', { type: 'submit' }, 'Ask')),
    shown)
}

async function listBatches(context, asked, shown) {
  const ask = after => context.api.get('/internal/batches', { ...asked, after }, { signal: context.signal })
  let report = await ask()
  if (!report.batches.length) {
    shown.append(el('p', { class: 'muted', text: 'None is kept of that time. Totals and hours remain when batches have been trimmed.' }))
    return
  }
  const batches = [...report.batches]
  let visible = ROWS_SHOWN
  const list = table('Batches', [{ label: 'Accepted' }, { label: 'Position' }, { label: 'Counted' }], [])
  const said = el('p', { class: 'muted' })
  const more = el('button', { type: 'button', on: { click: () => next() } }, 'Show more')
  const draw = () => {
    list.setRows(batches.slice(0, visible).map(batch => [moment(batch.timestamp), position(batch.position), counted(batch.summaries)]))
    const all = visible >= batches.length
    said.textContent = `${count(Math.min(visible, batches.length))} of ${count(batches.length)}${report.has_more ? ' or more' : ''} ${batches.length === 1 ? 'batch' : 'batches'}, oldest first`
    more.hidden = all && !report.has_more
  }
  const next = busyWhile(more, context, async () => {
    if (visible >= batches.length) {
      report = await ask(batches.at(-1).position)
      batches.push(...report.batches)
    }
    visible += ROWS_SHOWN
    draw()
  })
  draw()
  shown.append(said, list, more)
}

// ---- connections

function connectionsCard(userId, report) {
  const none = el('p', { class: 'muted', text: 'Nobody is connected for this user now.' })
  const list = () => table(`Connections of user ${userId}`, [
    { label: 'Strategies' }, { label: 'State' }, { label: 'Behind', number: true }, { label: 'Unsent', number: true },
    { label: 'Open for' }, { label: 'Position' }, { label: 'Client' },
  ], report.slowest.map(each => [
    each.strategies === '*' ? 'all' : each.strategies.join(', '),
    badge(each.behind_batches ? 'lagging' : each.state, each.behind_batches || each.state === 'blocked' ? 'warn' : 'good'),
    count(each.behind_batches), `${count(each.unsent_bytes)} B`, duration(each.age_seconds), position(each.position),
    el('span', { class: 'mono', text: each.peer }),
  ]))
  const rest = report.connections - report.slowest.length
  return el('section', { class: 'card' },
    el('div', { class: 'card-head' }, el('h2', { text: 'Connections' }),
      el('p', { class: 'muted', text: `${count(report.connections)} open, ${count(report.lagging)} lagging` })),
    report.connections ? list() : none,
    rest > 0 && el('p', { class: 'muted', text: `The ${report.slowest.length} furthest behind are listed; ${count(rest)} more are open.` }))
}

// ---- pieces

/** A click handler that is not run twice at once, and tells what goes wrong beside its button. */
function busyWhile(button, context, work) {
  let notice = null
  return async () => {
    button.disabled = true
    notice?.remove()
    try {
      await work()
    } catch (error) {
      notice = context.problem(error)
      if (notice) button.after(notice)
    }
    button.disabled = false
  }
}

const sum = (summaries, name) => summaries.reduce((total, each) => total + each[name], 0)

const facts = rows => el('dl', { class: 'facts' }, rows.map(([name, value]) => [el('dt', { text: name }), el('dd', {}, value)]))

const position = text => (text ? el('span', { class: 'mono', text }) : '–')

const moment = text => (text ? el('time', { datetime: text, title: text, text: `${new Date(text).toLocaleDateString('en-GB')} ${clock(text, true)}` }) : '–')

const keyLink = (userId, strategyId) => el('a', { href: `#/lookup?user_id=${userId}&strategy_id=${strategyId}`, text: String(strategyId) })

const userLink = (userId, text = String(userId)) => el('a', { href: `#/lookup?user_id=${userId}`, text })

const counted = summaries => summaries.map(each => `${each.order_type} +${count(each.created)} −${count(each.cancelled)}`).join(', ')

const utc = local => (local ? new Date(local).toISOString() : '')

function summaryTable(caption, summaries, options) {
  return el('div', { class: 'narrow' }, table(caption, [{ label: 'Order type' }, { label: 'Created', number: true }, { label: 'Cancelled', number: true }],
    summaries.map(each => [each.order_type, count(each.created), count(each.cancelled)]), options))
}
