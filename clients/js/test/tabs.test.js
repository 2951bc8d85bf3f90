import assert from 'node:assert/strict'
import { test } from 'node:test'

import { TallywireStream } from '../tallywire.js'
import { World, block, open, settled, summary, wireUpdate } from './world.js'

/** Numbers that look random and are the same each time (Park and Miller). */
function chance(seed) {
  let state = seed * 48271 + 1
  return (below) => {
    state = (state * 48271) % 2147483647
    return state % below
  }
}

/** Web Locks as the standard has them: one holder, a queue, and thieves. */
class Locks {
  #held = null
  #queue = []

  request(name, options, callback) {
    return new Promise((resolve, reject) => {
      const request = { callback, resolve, reject }
      if (options.ifAvailable && (this.#held || this.#queue.length)) return resolve(Promise.resolve(callback(null)))
      if (options.steal) {
        this.#held?.reject(new DOMException('stolen', 'AbortError'))
        this.#held = null
        return this.#grant(request)
      }
      options.signal?.addEventListener('abort', () => {
        if (!this.#queue.includes(request)) return
        this.#queue = this.#queue.filter((other) => other !== request)
        reject(new DOMException('given up', 'AbortError'))
      })
      this.#queue.push(request)
      return this.#next()
    })
  }

  #next() {
    if (!this.#held && this.#queue.length) this.#grant(this.#queue.shift())
  }

  #grant(request) {
    this.#held = request
    const done = (settle) => (value) => {
      settle(value)
      if (this.#held !== request) return
      this.#held = null
      this.#next()
    }
    Promise.resolve(request.callback({})).then(done(request.resolve), done(request.reject))
  }
}

/** BroadcastChannel among tabs of which some may hear nothing for a while, and then everything. `isLost`: now and then. */
function channels(isLost) {
  const all = new Set()
  return (tab) =>
    class {
      onmessage = null
      constructor() {
        all.add(this)
      }
      postMessage(message) {
        const copy = structuredClone(message)
        for (const other of all) if (other !== this && !isLost()) other.hear(copy)
      }
      hear(data) {
        const deliver = () => all.has(this) && this.onmessage?.({ data: structuredClone(data) })
        if (tab.isFrozen) tab.missed.push(deliver)
        else setImmediate(deliver)
      }
      close() {
        all.delete(this)
      }
    }
}

/** A user's batches, and streams that are served from them. */
class Journal {
  #totals = [new Map()]
  #streams = []

  get n() {
    return this.#totals.length - 1
  }

  get sums() {
    return this.#totals.at(-1)
  }

  emit(created) {
    const sums = new Map(this.sums)
    const strategy = 3 + (created % 2)
    sums.set(strategy, (sums.get(strategy) ?? 0) + created)
    this.#totals.push(sums)
  }

  async serve(exchange, withTotals) {
    const asked = exchange.lastEventId
    const n = asked === null ? this.n : Number(asked.slice(2))
    this.#streams.push({ exchange, n, withTotals })
    const totals = [...this.#totals[n]].map(([strategy_id, created]) => ({ strategy_id, summaries: [summary('LIMIT', created)] }))
    await exchange.stream(open(`e-${n}`, { resumed: asked !== null, ...(withTotals && { totals }), heartbeat: 100_000 }))
  }

  /** Bring a stream up to date, as a whole. */
  async flush() {
    this.#streams = this.#streams.filter(({ exchange }) => !exchange.hasEnded)
    for (const stream of this.#streams) {
      const [before, now] = [this.#totals[stream.n], this.sums]
      if (stream.n === this.n || stream.exchange.isStuck) continue
      const updates = [...now]
        .filter(([strategy, created]) => created !== (before.get(strategy) ?? 0))
        .map(([strategy, created]) => {
          const stated = stream.withTotals ? [summary('LIMIT', created)] : undefined
          return wireUpdate(strategy, `e-${stream.n}`, [summary('LIMIT', created - (before.get(strategy) ?? 0))], stated)
        })
      const [id, after_] = [`e-${this.n}`, `e-${stream.n}`]
      const catchUp = { type: 'order_batch_catch_up', updates, after: after_ }
      await stream.exchange.send(updates.length === 1 ? block('order_batch_update', updates[0], id) : block('order_batch_catch_up', catchUp, id))
      stream.n = this.n
    }
  }

  get open() {
    return this.#streams.filter(({ exchange }) => !exchange.hasEnded && !exchange.isStuck).length
  }
}

class Site {
  journal = new Journal()
  world = new World()
  tabs = []
  #locks = new Locks()
  #channelOf
  #withTotals

  constructor({ isLost = () => false, totals = true } = {}) {
    this.#channelOf = channels(isLost)
    this.#withTotals = totals
  }

  open() {
    const tab = { isFrozen: false, missed: [], added: new Map(), world: this.world }
    const { environment } = this.world
    const frozenLater = (callback) => () => (tab.isFrozen ? tab.missed.push(callback) : callback())
    tab.stream = new TallywireStream({
      url: 'http://localhost/stream', userId: 7, strategyIds: [3, 4], share: 'user 7', totals: this.#withTotals,
      environment: {
        ...environment,
        page: null,
        // A frozen tab may be given the lock, and has it then; of a theft it learns when it wakes.
        locks: {
          request: (name, options, callback) => {
            const begun = (lock) => new Promise((resolve) => frozenLater(() => resolve(callback(lock)))())
            const done = this.#locks.request(name, options, begun)
            return new Promise((resolve, reject) => done.then((value) => frozenLater(() => resolve(value))(), (error) => frozenLater(() => reject(error))()))
          },
        },
        BroadcastChannel: this.#channelOf(tab),
        setTimeout: (callback, ms) => environment.setTimeout(frozenLater(callback), ms),
        fetch: (...given) => {
          const response = environment.fetch(...given)
          tab.exchange = this.world.latest
          void this.journal.serve(this.world.latest, this.#withTotals)
          return response
        },
      },
    })
    const add = (strategy, summaries) => {
      for (const { created } of summaries) tab.added.set(strategy, (tab.added.get(strategy) ?? 0) + created)
    }
    tab.stream.on('order_batch_update', ({ data, stream }) => add(stream.strategy_id, data.summaries))
    tab.stream.on('totals', ({ totals, cause }) => {
      if (cause === 'update') return
      tab.added = new Map()
      for (const [strategy, summaries] of totals) add(strategy, summaries)
    })
    tab.wrong = []
    for (const type of ['mismatch', 'gap', 'error']) tab.stream.on(type, (event) => tab.wrong.push([type, event]))
    this.tabs.push(tab)
    return tab
  }

  freeze(tab) {
    tab.isFrozen = true
    if (tab.exchange) tab.exchange.isStuck = true
  }

  /** What came meanwhile arrives: first from the server, or first from timers, other tabs and locks. */
  async thaw(tab, { serverFirst = false } = {}) {
    tab.isFrozen = false
    if (tab.exchange) tab.exchange.isStuck = false
    if (serverFirst) await this.journal.flush()
    for (const late of tab.missed.splice(0)) late()
    await settled()
  }

  close(tab) {
    tab.stream.close()
    this.tabs = this.tabs.filter((other) => other !== tab)
  }

  async pass(ms) {
    for (let passed = 0; passed < ms; passed += 500) {
      await this.world.pass(500)
      await this.journal.flush()
    }
  }

  check() {
    const expected = [...this.journal.sums].sort()
    const awake = this.tabs.filter((tab) => !tab.isFrozen)
    assert.equal(awake.filter((tab) => tab.stream.role === 'leader').length, 1)
    assert.equal(this.journal.open, 1)
    for (const tab of awake) {
      assert.deepEqual([...tab.stream.totals].map(([strategy, [{ created }]]) => [strategy, created]).sort(), expected)
      assert.deepEqual([...tab.added].sort(), expected)
      assert.equal(tab.stream.position, `e-${this.journal.n}`)
      assert.deepEqual(tab.wrong, [])
    }
  }
}

for (const totals of [true, false]) {
  test(`whoever leads, closes, freezes and wakes: one connection, and every tab has every count once (totals: ${totals})`, async () => {
    for (let seed = 1; seed <= 10; seed += 1) {
      const random = chance(seed)
      const site = new Site({ totals, isLost: () => random(30) === 0 })
      site.world.chance = random(100) / 100
      site.open()
      await site.pass(1000)
      try {
        for (let step = 0; step < 15; step += 1) {
          await change(site, random)
          for (let rounds = random(4); rounds >= 0; rounds -= 1) {
            site.journal.emit(1 + random(9))
            await site.pass(500 * random(3))
          }
          await site.pass(15_000)
          site.check()
        }
      } catch (error) {
        error.message = `seed ${seed}: ${error.message}`
        throw error
      } finally {
        for (const tab of [...site.tabs]) site.close(tab)
      }
      await settled()
    }
  })
}

/** One tab comes, goes, freezes or wakes; one at least stays awake. */
async function change(site, random) {
  const [tab, what] = [site.tabs[random(site.tabs.length)], random(5)]
  const isLast = !tab.isFrozen && site.tabs.filter((each) => !each.isFrozen).length === 1
  if (tab.isFrozen) await site.thaw(tab, { serverFirst: random(2) === 0 })
  else if (what < 2 || isLast) site.tabs.length < 6 && site.open()
  else if (what === 2) site.close(tab)
  else site.freeze(tab)
}

test('a tab whose token does not count leaves the connection to one whose token does', async () => {
  const site = new Site()
  const first = site.open()
  site.journal.serve = async (exchange) => exchange.refuse(401)
  await site.pass(500)
  assert.equal(first.stream.state, 'closed')

  delete site.journal.serve
  const second = site.open()
  await site.pass(1000)
  assert.equal(second.stream.state, 'open')
  site.close(second)
})

test('what ends the stream for good ends it for every tab', async () => {
  const site = new Site()
  const tabs = [site.open(), site.open()]
  site.journal.serve = async (exchange) => exchange.refuse(422, { code: 'invalid_query', retry: 'no' })
  await site.pass(1000)

  assert.deepEqual(tabs.map(({ stream }) => [stream.state, stream.error?.problem?.code]), Array(2).fill(['closed', 'invalid_query']))
  assert.equal(site.world.exchanges.length, 1)
})

for (const type of ['state', 'stream_open', 'totals', 'order_batch_update']) {
  test(`a leader that is closed by its own page while it tells of ${type} closes nobody else`, async () => {
    const site = new Site()
    const first = site.open()
    first.stream.on(type, () => first.stream.state === 'closed' || (first.stream.state === 'open' && site.close(first)))
    const others = [site.open(), site.open()]
    await site.pass(500)
    site.journal.emit(4)
    await site.pass(15_000)

    assert.equal(first.stream.state, 'closed')
    assert.deepEqual(others.map(({ stream }) => stream.state), ['open', 'open'])
    site.check()
    for (const tab of others) site.close(tab)
  })
}
