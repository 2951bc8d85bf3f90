// Charts: uPlot in the colours of the page, redrawn when the theme or the width changes, with a legend that is text.
import uPlot from './vendor/uPlot.esm.js'
import { el } from './dom.js'

const HEIGHT = 150
/** Half of the longest label of a moment: the last one may stand at the very end. */
const HALF_A_LABEL = 26
const HOUR_SECONDS = 3600
const WHOLE_STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map(step => step * 10 ** power)).flat()
const darkness = matchMedia('(prefers-color-scheme: dark)')

/** Lines over time. `series`: [{label, colour (1 to 8), format?, area?}]; `format`: number to text; `least`: the least
 * top of the scale; `isWhole`: there is nothing between two whole numbers. Answers {element, set(times, lists), destroy()}: times in seconds, a list of values (null: unknown)
 * for each series. The legend states the newest values, or those under the pointer. */
export function lineChart({ label, series, format, least = 1, isWhole = false, height = HEIGHT }) {
  return chart({
    label,
    series,
    format,
    height,
    isWhole,
    options: colours => ({
      scales: { x: { time: true }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), top(high, least)] } },
      series: series.map((each, index) => ({
        stroke: colours[index],
        width: 1.6,
        fill: each.area ? translucent(colours[index]) : undefined,
        points: { show: false },
        spanGaps: false,
      })),
    }),
  })
}

/** Stacked bars over hours: what was created upwards, what was cancelled downwards. `types`: [{label, colour}].
 * `set(times, created, cancelled)`: for each type a list of values. */
export function stackChart({ label, types, format, height = 260 }) {
  const bars = uPlot.paths.bars({ size: [0.72, 46], align: 1, radius: 0 })
  // The highest is drawn first, so that each lower one leaves only its own part of it to be seen.
  const both = [...types, ...types]
  const made = chart({
    label,
    series: types,
    format,
    height,
    isStack: true,
    options: (colours, soft) => ({
      scales: {
        // The last bar begins at its hour and needs the room of one.
        x: { time: true, range: (_, low, high) => [low, high + HOUR_SECONDS] },
        y: { range: (_, low, high) => [-top(-(low ?? 0), 0), top(high, 1)] },
      },
      series: both.map((_, index) => ({
        fill: index < types.length ? colours[index] : soft[index - types.length],
        stroke: colours[index % types.length],
        width: 0,
        paths: bars,
        points: { show: false },
      })),
    }),
  })
  return {
    ...made,
    set(times, created, cancelled) {
      made.setPlain(created.map((list, index) => list.map((up, at) => [up, cancelled[index][at]])))
      made.set(times, [...stacked(created), ...stacked(cancelled).map(list => list.map(value => -value))].map(withoutNothing))
    },
  }
}

/** Each list with those behind it added: what is drawn first is the tallest. */
export function stacked(lists) {
  const sums = []
  let above = null
  for (const list of [...lists].reverse()) {
    above = list.map((value, at) => value + (above?.[at] ?? 0))
    sums.unshift(above)
  }
  return sums
}

/** A bar of no height would be drawn as a line. */
const withoutNothing = list => list.map(value => value || null)

function top(high, least) {
  const wanted = Math.max(high ?? 0, least)
  if (wanted <= 0) return 0
  const power = 10 ** Math.floor(Math.log10(wanted))
  const steps = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10]
  return power * steps.find(step => step * power >= wanted * 1.04 || step === 10)
}

function chart({ label, series, format, height, options, isStack = false, isWhole = false }) {
  const values = series.map(() => el('span', { class: 'legend-value' }))
  const legend = el('ul', { class: 'legend' }, series.map((each, index) =>
    el('li', { class: `key-${each.colour}` }, el('span', { text: each.label }), values[index])))
  const canvas = el('div', { class: 'chart', role: 'img', 'aria-label': label })
  const moment = el('span', { class: 'legend-moment' })
  const element = el('div', { class: 'chart-frame' }, el('div', { class: 'legend-row' }, legend, moment), canvas)
  let plot = null
  let data = null
  let plain = null
  const left = new AbortController()

  const state = index => {
    const at = index ?? (isStack ? null : data[0].length - 1)
    moment.textContent = index === null || index === undefined ? '' : momentOf(data[0][index], isStack)
    for (const [which, value] of values.entries()) {
      if (at === null) value.textContent = ''
      else if (isStack) value.textContent = plain[which][at].map(format).join(' / ')
      else value.textContent = (series[which].format ?? format)(data[which + 1][at] ?? NaN)
    }
  }

  const draw = () => {
    plot?.destroy()
    const colours = series.map(each => resolved(colourOf(each)))
    const [muted, line] = [resolved('var(--muted)'), resolved('var(--line)')]
    const axis = { stroke: muted, font: '11px system-ui, sans-serif', grid: { stroke: line, width: 1 }, ticks: { show: false } }
    const given = options(colours, series.map(each => resolved(`color-mix(in srgb, ${colourOf(each)} 62%, var(--raised))`)))
    const lists = given.series.length
    plot = new uPlot({
      width: Math.max(120, canvas.clientWidth),
      height,
      legend: { show: false },
      padding: [8, HALF_A_LABEL, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { show: !isStack, size: 6 } },
      hooks: { setCursor: [self => data && state(self.cursor.idx)] },
      axes: [
        { ...axis, grid: { show: false }, size: 20, gap: 4, space: 64, values: timesOf },
        {
          ...axis,
          size: 52,
          gap: 6,
          space: 34,
          ...(isWhole || isStack ? { incrs: WHOLE_STEPS } : {}),
          values: (_, splits) => splits.map(split => format(isStack ? Math.abs(split) : split)),
        },
      ],
      ...given,
      series: [{}, ...given.series],
    }, data ?? [[], ...Array.from({ length: lists }, () => [])], canvas)
  }

  const resize = new ResizeObserver(() => {
    const width = Math.max(120, canvas.clientWidth)
    if (plot && plot.width !== width) plot.setSize({ width, height })
  })
  const start = () => {
    if (plot) return
    draw()
    resize.observe(canvas)
  }
  window.addEventListener('themechange', () => plot && draw(), { signal: left.signal })
  darkness.addEventListener('change', () => plot && draw(), { signal: left.signal })

  return {
    element,
    setPlain(lists) {
      plain = lists
    },
    set(times, lists) {
      data = [times, ...lists]
      if (!element.isConnected) return
      start()
      plot.setData(data)
      state(plot.cursor.idx)
    },
    destroy() {
      left.abort()
      resize.disconnect()
      plot?.destroy()
      plot = null
    },
  }
}

const colourOf = ({ colour }) => `var(--series-${colour})`

const timesOf = (_, splits, __, ___, step) => {
  let day = ''
  return splits.map(split => {
    const date = new Date(split * 1000)
    const thisDay = date.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })
    if (step >= 86400) return thisDay
    const time = date.toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit', ...(step < 60 ? { second: '2-digit' } : {}) })
    const isNew = day !== '' && thisDay !== day
    day = thisDay
    return isNew ? `${time}\n${thisDay}` : time
  })
}

const momentOf = (seconds, isHour) => new Date(seconds * 1000).toLocaleString('en-GB', isHour
  ? { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' }
  : { hour: '2-digit', minute: '2-digit', second: '2-digit' })

/** What a colour of the style sheet is in the theme of now, as a canvas understands it. */
function resolved(colour) {
  const probe = el('span', { class: 'visually-hidden' })
  probe.style.color = colour
  document.body.append(probe)
  const value = getComputedStyle(probe).color
  probe.remove()
  return value
}

const translucent = (colour, alpha = 0.12) => colour.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`)
