// How the server is: figures of now and the last ten minutes, from /metrics.
import { lineChart } from '../charts.js'
import { badge, bytes, clock, code, count, duration, el, empty, rate, stat, table } from '../dom.js'
import { meanBetween, perSecond, quantileBetween, Scrape } from '../metrics.js'
import { curlEmit } from '../examples.js'

export const title = 'Overview'

const EVERY_MS = 2000
const WINDOW_SECONDS = 600
const LEAST_WINDOW_SECONDS = 120
const GAP_SECONDS = 3 * EVERY_MS / 1000
const LOOP_LAG_WARN_SECONDS = 0.05
const UNSENT_WARN_SECONDS = 5

const M = name => `tallywire_${name}`

/** Kept when the page is left, so that whoever comes back sees the curve with a gap in it. */
const history = []
let last = null

export function mount(root, context) {
  const state = badge('Connecting')
  context.actions.append(state)
  const trouble = el('div')
  const hint = el('div')
  const figures = figuresOf()
  const charts = chartsOf()
  const since = sinceStart(root)
  root.append(trouble, hint, figures.element, charts.element, since.element)
  if (history.length) charts.draw()

  let answered = null
  context.poll(EVERY_MS, async signal => {
    try {
      const text = await context.api.get('/metrics', {}, { signal })
      const now = { at: Date.now() / 1000, scrape: new Scrape(text) }
      const before = last && now.at - last.at < WINDOW_SECONDS ? last : null
      keep(now, before)
      last = now
      answered = Date.now()
      trouble.replaceChildren()
      root.classList.remove('is-stale')
      setBadge(state, 'Live', 'good')
      invite(hint, now.scrape, context.config)
      figures.draw(now, before)
      charts.draw()
      since.draw(now.scrape)
    } catch (error) {
      if (error.name === 'AbortError') return
      root.classList.add('is-stale')
      const without = error.code === 'key_needed' ? 'Key needed' : 'No answer'
      setBadge(state, answered ? `Stale since ${clock(answered)}` : without, 'bad')
      if (trouble.dataset.code !== error.code || !trouble.firstChild) trouble.replaceChildren(context.problem(error))
      trouble.dataset.code = error.code
    }
  })
  return () => charts.destroy()
}

function setBadge(element, text, kind) {
  if (element.textContent === text) return
  element.className = `badge ${kind}`
  element.textContent = text
}

function invite(hint, scrape, config) {
  const isSilent = !scrape.value(M('emits_total'))
  if (isSilent === (hint.firstChild !== null)) return
  hint.replaceChildren(...(isSilent
    ? [empty('Nothing was emitted since the start', el('p', {}, 'Paste this into a terminal, and the figures below move:'), code(curlEmit(config)))]
    : []))
}

// ---- what is kept

function keep(now, before) {
  const { scrape, at } = now
  const seconds = before ? at - before.at : 0
  const grew = (name, labels) => perSecond(before?.scrape, scrape, seconds, M(name), labels)
  if (before && seconds > GAP_SECONDS) history.push({ at: before.at + 0.001 })
  history.push({
    at,
    accepted: grew('emits_total', { outcome: 'accepted' }),
    duplicate: grew('emits_total', { outcome: 'duplicate' }),
    refused: sum(grew('emits_total', { outcome: 'rejected' }), grew('emits_total', { outcome: 'skipped' })),
    updates: grew('frames_total', { event: 'order_batch_update' }),
    catchUps: grew('frames_total', { event: 'order_batch_catch_up' }),
    controls: grew('frames_total', { event: 'control' }),
    merged: grew('batches_merged_total'),
    cpu: perSecond(before?.scrape, scrape, seconds, 'process_cpu_seconds_total'),
    open: scrape.value(M('connections')),
    lagging: scrape.value(M('connections_lagging')),
    blocked: scrape.value(M('connections_blocked')),
    unsent: scrape.value(M('oldest_unsent_seconds')),
    loop: scrape.value(M('loop_lag_seconds')),
    commit: meanBetween(before?.scrape, scrape, M('journal_commit_seconds')),
    commitSlow: quantileBetween(before?.scrape, scrape, M('journal_commit_seconds'), 0.99),
    group: meanBetween(before?.scrape, scrape, M('journal_commit_batches')),
  })
  while (history.length && history[0].at < at - WINDOW_SECONDS) history.shift()
}

const sum = (one, other) => (one === null && other === null ? null : (one ?? 0) + (other ?? 0))

// ---- figures

function figuresOf() {
  const figures = {
    connections: stat('Connections'),
    emits: stat('Emits / s'),
    frames: stat('Frames / s'),
    merged: stat('Merged'),
    behind: stat('Behind'),
    loop: stat('Loop lag'),
    journal: stat('Journal'),
    unaccounted: stat('Unaccounted counts'),
    memory: stat('Memory'),
    cpu: stat('CPU'),
  }
  const element = el('dl', { class: 'stats five', 'aria-label': 'Now' }, Object.values(figures).map(each => each.element))
  const draw = ({ scrape }) => {
    const now = history.at(-1)
    const value = name => scrape.value(M(name))
    const open = value('connections')
    figures.connections.set(count(open), open >= 0.9 * value('max_connections') ? 'warn' : '',
      `of ${count(value('max_connections'))}`)
    figures.emits.set(rate(now.accepted), '', `${count(scrape.value(M('emits_total'), { outcome: 'accepted' }) ?? 0)} accepted`)
    const frames = sum(now.updates, now.catchUps)
    figures.frames.set(rate(frames), '', `${count(framesOf(scrape))} written`)
    figures.merged.set(count(value('batches_merged_total') ?? 0), '', 'batches sent together with others')
    const behind = value('connections_lagging')
    const unsent = value('oldest_unsent_seconds') ?? 0
    figures.behind.set(count(behind), unsent > UNSENT_WARN_SECONDS ? 'warn' : '',
      behind ? `oldest unsent ${duration(unsent)}` : 'everyone is up to date')
    figures.loop.set(duration(value('loop_lag_seconds')), value('loop_lag_seconds') > LOOP_LAG_WARN_SECONDS ? 'warn' : '',
      `worst ${duration(value('loop_lag_max_seconds'))}`)
    const accepting = value('journal_accepting')
    figures.journal.set(value('journal_max_bytes') === 0 ? 'In memory' : bytes(value('journal_size_bytes')), accepting === 0 ? 'bad' : '', accepting === 0 ? 'refuses emits' : 'accepting emits')
    const off = value('counts_unaccounted')
    figures.unaccounted.set(count(off), off === undefined ? '' : off === 0 ? 'good' : 'bad',
      off ? 'must be 0: report this' : 'must be 0, and is')
    figures.memory.set(bytes(scrape.value('process_resident_memory_bytes')), '', `${count(scrape.value('process_open_fds'))} descriptors`)
    figures.cpu.set(now.cpu === null ? '–' : `${Math.round(now.cpu * 100)} %`, now.cpu > 0.85 ? 'warn' : '', 'of one core')
  }
  return { element, draw }
}

const framesOf = scrape => {
  const { control = 0, ...others } = scrape.by(M('frames_total'), 'event')
  return Object.values(others).reduce((total, each) => total + each, 0)
}

// ---- charts

function chartsOf() {
  const made = [
    ['Emits a second', [['accepted', 'accepted', 1, true], ['duplicate', 'repeated', 5], ['refused', 'refused', 7]], { format: rate }],
    ['Frames a second', [['updates', 'update', 1, true], ['catchUps', 'catch-up', 4], ['controls', 'control', 8]], { format: rate }],
    ['Connections', [['open', 'open', 1, true], ['lagging', 'behind', 2], ['blocked', 'not reading', 7]], { format: count, isWhole: true }],
    ['Oldest unsent', [['unsent', 'waits for', 2, true]], { format: duration, least: 0.1 }],
    ['Loop lag', [['loop', 'late by', 3, true]], { format: duration, least: 0.01 }],
    ['Journal commit', [['commit', 'mean', 6, true], ['commitSlow', 'p99', 4]], { format: duration, least: 0.005 }],
  ].map(([label, lines, options]) => ({
    label,
    fields: lines.map(([name]) => name),
    chart: lineChart({ label: `${label}, the last minutes`, series: lines.map(([, text, colour, area]) => ({ label: text, colour, area })), ...options }),
  }))
  const element = el('div', { class: 'grid' }, made.map(({ label, chart }) =>
    el('section', { class: 'card' }, el('h2', { text: label }), chart.element)))
  const draw = () => {
    const end = history.at(-1).at
    const begin = Math.min(history[0].at, end - LEAST_WINDOW_SECONDS)
    // An empty place at the left end: a young curve grows from the right instead of being stretched.
    const points = begin < history[0].at ? [{ at: begin }, ...history] : history
    const times = points.map(point => point.at)
    for (const { chart, fields } of made) chart.set(times, fields.map(name => points.map(point => point[name] ?? null)))
  }
  return { element, draw, destroy: () => made.forEach(({ chart }) => chart.destroy()) }
}

// ---- since the process started

function sinceStart() {
  const facts = el('dl', { class: 'facts' })
  const streams = table('Streams since the start', [{ label: 'What' }, { label: 'Times', number: true }], [])
  const emits = table('Emits and refusals since the start', [{ label: 'What' }, { label: 'Times', number: true }], [])
  const element = el('div', { class: 'grid' },
    el('section', { class: 'card' }, el('h2', { text: 'Process' }), facts),
    el('section', { class: 'card' }, el('h2', { text: 'Streams since the start' }), streams),
    el('section', { class: 'card' }, el('h2', { text: 'Emits since the start' }), emits))
  const rows = (scrape, metrics) => metrics.flatMap(([what, name, label]) =>
    Object.entries(scrape.by(M(name), label)).filter(([, times]) => times > 0)
      .map(([which, times]) => [[`${what} `, el('code', { text: which })], count(times)]))
  const draw = scrape => {
    const build = scrape.labels(M('build_info'))
    const started = scrape.value('process_start_time_seconds')
    const pairs = [
      ['Version', [build.version, build.http && `${build.http} front`].filter(Boolean).join(', ')],
      ['Durability', build.durability],
      ['Journal', scrape.value(M('journal_max_bytes')) === 0
        ? 'in memory' : `${bytes(scrape.value(M('journal_size_bytes')))} of ${bytes(scrape.value(M('journal_max_bytes')))}`],
      ['Up', Number.isFinite(started) ? `${duration(Math.max(0, Date.now() / 1000 - started))}, since ${new Date(started * 1000).toLocaleString('en-GB')}` : '–'],
      ['Being watched', `${count(scrape.value(M('users')))} users, ${count(scrape.value(M('stream_keys')))} stream keys`],
      ['Tasks', count(scrape.value(M('tasks')))],
      ['Counts pending', count(scrape.value(M('counts_pending')))],
      ['Counts delivered', count(scrape.value(M('counts_delivered_total')))],
      ['Emits waiting', `${count(scrape.value(M('journal_waiting')))}, ${bytes(scrape.value(M('emits_held_bytes')))}`],
      ['Log lines dropped', count(scrape.value(M('log_lines_dropped_total')))],
    ]
    facts.replaceChildren(...pairs.flatMap(([name, text]) => [el('dt', { text: name }), el('dd', { text: text ?? '–' })]))
    setRows(streams, rows(scrape, [
      ['opened', 'streams_opened_total', 'start'], ['reset', 'stream_resets_total', 'reason'],
      ['closed', 'streams_closed_total', 'reason'], ['refused', 'streams_refused_total', 'reason'],
    ]), 'No stream was opened yet.')
    setRows(emits, rows(scrape, [['emit', 'emits_total', 'outcome'], ['answer', 'answers_refused_total', 'code']]), 'Nothing was emitted yet.')
  }
  return { element, draw }
}

const setRows = (element, rows, none) => element.setRows(rows.length ? rows : [[el('span', { class: 'muted', text: none }), '']])
