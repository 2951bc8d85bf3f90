// The text that /metrics answers, and what can be read from two of them. Pure: no clock, no network.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$/
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)",?\s*/g
const NUMBERS = { '+Inf': Infinity, Inf: Infinity, '-Inf': -Infinity, NaN }

/** Samples of one scrape. */
export class Scrape {
  #samples = new Map()

  constructor(text) {
    for (const line of text.split('\n')) {
      const found = line.startsWith('#') ? null : SAMPLE.exec(line.trim())
      if (!found) continue
      const [, name, labels = '', value] = found
      if (!this.#samples.has(name)) this.#samples.set(name, [])
      this.#samples.get(name).push({ labels: labelsOf(labels), value: NUMBERS[value] ?? Number(value) })
    }
  }

  /** The sum of what has these labels; undefined when there is none. */
  value(name, labels = {}) {
    const wanted = Object.entries(labels)
    let sum
    for (const sample of this.#samples.get(name) ?? []) {
      if (wanted.every(([label, value]) => sample.labels[label] === value)) sum = (sum ?? 0) + sample.value
    }
    return sum
  }

  /** {value of the label: sum}, in the order of the text. */
  by(name, label) {
    const sums = {}
    for (const sample of this.#samples.get(name) ?? []) {
      const key = sample.labels[label] ?? ''
      sums[key] = (sums[key] ?? 0) + sample.value
    }
    return sums
  }

  /** The labels of the only sample, as those of an info metric. */
  labels(name) {
    return this.#samples.get(name)?.[0]?.labels ?? {}
  }
}

function labelsOf(text) {
  const labels = {}
  for (const [, name, value] of text.matchAll(LABEL)) {
    labels[name] = value.replace(/\\(.)/g, (_, character) => (character === 'n' ? '\n' : character))
  }
  return labels
}

/** How much a counter grew a second between two scrapes; null when that cannot be said: it is missing, or the process
 * has started anew, so that its counters did. */
export function perSecond(before, after, seconds, name, labels) {
  const [from, to] = [before?.value(name, labels) ?? 0, after.value(name, labels)]
  if (!before || to === undefined || !(seconds > 0) || !isSameProcess(before, after) || to < from) return null
  return (to - from) / seconds
}

/** Mean of what a histogram (or summary) observed between two scrapes; null when it observed nothing. */
export function meanBetween(before, after, name) {
  if (!before || !isSameProcess(before, after)) return null
  const observed = (after.value(`${name}_count`) ?? 0) - (before.value(`${name}_count`) ?? 0)
  if (!(observed > 0)) return null
  return ((after.value(`${name}_sum`) ?? 0) - (before.value(`${name}_sum`) ?? 0)) / observed
}

/** The bound under which this part of what a histogram observed between two scrapes lies, interpolated as Prometheus
 * does; null when it observed nothing. */
export function quantileBetween(before, after, name, quantile) {
  if (!before || !isSameProcess(before, after)) return null
  const [old, now] = [before.by(`${name}_bucket`, 'le'), after.by(`${name}_bucket`, 'le')]
  const buckets = Object.entries(now)
    .map(([bound, sum]) => [NUMBERS[bound] ?? Number(bound), sum - (old[bound] ?? 0)])
    .sort(([left], [right]) => left - right)
  const total = buckets.at(-1)?.[1] ?? 0
  if (!(total > 0)) return null
  const rank = quantile * total
  let [lower, below] = [0, 0]
  for (const [bound, sum] of buckets) {
    if (sum >= rank) {
      return bound === Infinity ? lower : lower + (bound - lower) * ((rank - below) / (sum - below || 1))
    }
    [lower, below] = [bound, sum]
  }
  return null
}

const START = 'process_start_time_seconds'
const isSameProcess = (before, after) => before.value(START) === after.value(START)
