// What was counted hour by hour, of one user: /internal/statistics/hourly.
import { stackChart } from '../charts.js'
import { code, count, el, empty, field, stat } from '../dom.js'
import { curlEmit } from '../examples.js'
import { connectedUsers, recent } from '../recent.js'

export const title = 'Hours'

const HOUR_MS = 3_600_000
const QUARTER_SECONDS = 900
const RANGES = [['24 hours', 24], ['7 days', 7 * 24], ['31 days', 31 * 24]]
const MOST_TYPES = 8

export function mount(root, context) {
  const given = context.parameters
  const user = el('input', { inputmode: 'numeric', placeholder: 'id', required: true, value: given.get('user_id') ?? recent.user_id, list: 'hours-users' })
  const strategy = el('input', { inputmode: 'numeric', placeholder: 'every', value: given.get('strategy_id') ?? '' })
  // Hours are those of UTC: in some time zones they begin at half past, or at a quarter to.
  const [from, to] = ['from', 'to'].map(() => el('input', { type: 'datetime-local', step: QUARTER_SECONDS }))
  const users = el('datalist', { id: 'hours-users' })
  const choice = el('div', { class: 'tabs', role: 'group', 'aria-label': 'Range' }, RANGES.map(([label, hours]) =>
    el('button', { type: 'button', 'aria-pressed': 'false', data: { hours }, on: { click: () => choose(hours) } }, label)))
  const found = el('div', { class: 'page' })
  root.append(
    el('form', { class: 'toolbar', on: { submit: event => { event.preventDefault(); ask() } } },
      field('User', user), field('Strategy', strategy), users,
      el('div', { class: 'field whole' }, el('span', { class: 'label', text: 'Range', 'aria-hidden': 'true' }), choice),
      field('From', from), field('To', to),
      el('button', { type: 'submit', class: 'primary', text: 'Show' })),
    found)
  let hours = Number(given.get('hours')) || null
  let chart = null
  let turn = 0

  function choose(next) {
    hours = next
    const end = Math.floor(Date.now() / HOUR_MS) * HOUR_MS + HOUR_MS
    from.value = localInput(end - next * HOUR_MS)
    to.value = localInput(end)
    mark()
    if (user.value) ask()
  }

  function mark() {
    for (const button of choice.children) button.setAttribute('aria-pressed', String(Number(button.dataset.hours) === hours))
  }

  for (const input of [from, to]) input.addEventListener('input', () => { hours = null; mark() })

  async function ask() {
    const mine = ++turn
    const span = { from: new Date(from.value), to: new Date(to.value) }
    const user_id = user.value.trim()
    recent.user_id = user_id
    context.setParameters(clean({ user_id, strategy_id: strategy.value.trim(), ...(hours ? { hours } : { from: from.value, to: to.value }) }))
    try {
      const answer = await context.api.get('/internal/statistics/hourly', {
        user_id,
        strategy_id: strategy.value.trim(),
        from: Number.isNaN(+span.from) ? '' : span.from.toISOString(),
        to: Number.isNaN(+span.to) ? '' : span.to.toISOString(),
      }, { signal: context.signal })
      if (mine === turn) draw(answer)
    } catch (error) {
      if (mine !== turn || error.name === 'AbortError') return
      found.replaceChildren(context.problem(error))
    }
  }

  function draw(answer) {
    chart?.destroy()
    chart = null
    if (answer.hours.length === 0) {
      found.replaceChildren(empty(`Nothing was counted for user ${answer.user_id} in these hours`,
        el('p', {}, 'Choose a longer range, another strategy, or emit something:'), code(curlEmit(context.config, { user_id: answer.user_id }))))
      context.announce('Nothing was counted in these hours')
      return
    }
    const counted = arrange(answer)
    chart = stackChart({ label: `Counts by hour and order type of user ${answer.user_id}; the same stands in the table below`, types: counted.types, format: count })
    found.replaceChildren(figuresOf(counted),
      el('section', { class: 'card' },
        el('div', { class: 'card-head' }, el('h2', { text: 'Created above the line, cancelled below' }), el('span', { class: 'hint', text: `times are those of ${zone()}` })),
        chart.element),
      el('section', { class: 'card' }, el('h2', { text: 'Hour by hour' }), tableOf(counted)))
    chart.set(counted.times, counted.created, counted.cancelled)
    context.announce(`${counted.rows.length} ${counted.rows.length === 1 ? 'hour' : 'hours'} with counts`)
  }

  connectedUsers(context.api, context.signal)
    .then(ids => {
      users.replaceChildren(...ids.map(id => el('option', { value: String(id) })))
      if (!user.value && !found.firstChild) found.replaceChildren(whose(ids, id => { user.value = id; ask() }))
    })
    .catch(error => { if (!user.value && error.name !== 'AbortError') found.replaceChildren(context.problem(error)) })
  if (given.get('from')) {
    from.value = given.get('from')
    to.value = given.get('to') ?? ''
    mark()
    if (user.value) ask()
  } else choose(hours ?? 24)
  return () => chart?.destroy()
}

function whose(ids, choose) {
  return empty('Whose hours?', el('p', {}, 'Hours are counted for one user. Give the id above', ids.length ? ', or take one that is connected:' : '.'),
    ids.length > 0 && el('div', { class: 'toolbar' }, ids.slice(0, 8).map(id =>
      el('button', { type: 'button', on: { click: () => choose(String(id)) } }, `User ${id}`))))
}

/** Lists by order type over every hour of the range, those without counts included. */
function arrange(answer) {
  const [first, end] = [Date.parse(answer.from), Date.parse(answer.to)]
  const length = Math.round((end - first) / HOUR_MS)
  const sums = new Map()
  const strategies = new Set()
  for (const { hour, strategy_id, summaries } of answer.hours) {
    strategies.add(strategy_id)
    for (const { order_type, created, cancelled } of summaries) {
      if (!sums.has(order_type)) sums.set(order_type, { created: Array(length).fill(0), cancelled: Array(length).fill(0), total: 0 })
      const sum = sums.get(order_type)
      const at = Math.round((Date.parse(hour) - first) / HOUR_MS)
      sum.created[at] += created
      sum.cancelled[at] += cancelled
      sum.total += created + cancelled
    }
  }
  const listed = fold([...sums].sort(([one], [other]) => one.localeCompare(other)))
  const times = Array.from({ length }, (_, at) => first / 1000 + at * 3600)
  const [created, cancelled] = ['created', 'cancelled'].map(field => listed.map(([, sum]) => sum[field]))
  const rows = times.map((time, at) => ({ time, at })).filter(({ at }) => listed.some(([, sum]) => sum.created[at] || sum.cancelled[at]))
  return { types: listed.map(([label], index) => ({ label, colour: index + 1 })), times, created, cancelled, rows, strategies, length }
}

/** At most eight: there are no more colours that can be told apart. The rest, the least counted, is one. */
function fold(listed) {
  if (listed.length <= MOST_TYPES) return listed
  const most = new Set([...listed].sort(([, one], [, other]) => other.total - one.total).slice(0, MOST_TYPES - 1).map(([name]) => name))
  const rest = listed.filter(([name]) => !most.has(name)).map(([, sum]) => sum)
  const add = field => rest[0][field].map((_, at) => rest.reduce((total, sum) => total + sum[field][at], 0))
  return [...listed.filter(([name]) => most.has(name)), [`${rest.length} others`, { created: add('created'), cancelled: add('cancelled') }]]
}

const total = lists => lists.reduce((all, list) => all + list.reduce((sum, each) => sum + each, 0), 0)

function figuresOf(counted) {
  const [created, cancelled, hours, strategies, busiest] = [stat('Created'), stat('Cancelled'), stat('Hours with counts'), stat('Strategies'), stat('Busiest hour')]
  created.set(count(total(counted.created)))
  cancelled.set(count(total(counted.cancelled)))
  hours.set(count(counted.rows.length), '', `of ${count(counted.length)}`)
  strategies.set(count(counted.strategies.size), '', [...counted.strategies].sort((one, other) => one - other).slice(0, 6).join(', '))
  const sizes = counted.rows.map(({ at, time }) => [total([...counted.created, ...counted.cancelled].map(list => [list[at]])), time])
  const [size, time] = sizes.reduce((one, other) => (other[0] > one[0] ? other : one))
  busiest.set(count(size), '', hourText(time))
  return el('dl', { class: 'stats', 'aria-label': 'In this range' }, [created, cancelled, hours, strategies, busiest].map(each => each.element))
}

function tableOf({ types, created, cancelled, rows }) {
  const caption = 'Counts by hour and order type'
  const both = ['created', 'cancelled']
  const cells = at => [[created, cancelled].map(lists => total(lists.map(list => [list[at]]))), ...types.map((_, index) => [created[index][at], cancelled[index][at]])]
  const number = (value, isFirst) => el('td', { class: `number ${isFirst ? 'starts' : ''}` }, value === 0 ? el('span', { class: 'muted', text: '0' }) : count(value))
  return el('div', { class: 'scroller tall', tabindex: '0', role: 'region', 'aria-label': caption },
    el('table', { class: 'data' },
      el('caption', { class: 'visually-hidden', text: caption }),
      el('thead', {},
        el('tr', {}, el('th', { scope: 'col', rowspan: 2, class: 'stays' }, 'Hour'),
          ['All', ...types.map(({ label }) => label)].map(label => el('th', { scope: 'colgroup', colspan: 2, class: 'starts' }, label))),
        el('tr', {}, [null, ...types].map(() => both.map((label, index) =>
          el('th', { scope: 'col', class: `number ${index ? '' : 'starts'}` }, label))))),
      el('tbody', {}, [...rows].reverse().map(({ time, at }) => el('tr', {},
        el('th', { scope: 'row', class: 'stays', text: hourText(time) }),
        cells(at).map(([up, down]) => [number(up, true), number(down, false)]))))))
}

const hourText = seconds => new Date(seconds * 1000).toLocaleString('en-GB', { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' })
const zone = () => Intl.DateTimeFormat().resolvedOptions().timeZone
const clean = pairs => Object.fromEntries(Object.entries(pairs).filter(([, value]) => value !== '' && value !== null))

/** A moment as datetime-local writes it: the reader's own time, without a zone. */
function localInput(ms) {
  const date = new Date(ms)
  return new Date(ms - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16)
}
