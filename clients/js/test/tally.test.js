import assert from 'node:assert/strict'
import { test } from 'node:test'

import { Tally } from '../tallywire.js'
import { summary, wireUpdate } from './world.js'

const TYPES = ['LIMIT', 'MARKET', 'STOP_LIMIT', 'STOP_MARKET']

/** Numbers that look random and are the same each time (Park and Miller). */
function chance(seed) {
  let state = seed * 48271 + 1
  return (below) => {
    state = (state * 48271) % 2147483647
    return state % below
  }
}

/** A user's batches, and what a stream that stands anywhere is owed. */
class Journal {
  log = []

  emit(random) {
    const order_type = TYPES[random(TYPES.length)]
    this.log.push({ strategy_id: 1 + random(3), summary: summary(order_type, 1 + random(9), random(5)) })
  }

  totals(n, strategy_id) {
    const sums = new Map()
    for (const batch of this.log.slice(0, n)) {
      if (batch.strategy_id !== strategy_id) continue
      const { order_type, created, cancelled } = batch.summary
      const own = sums.get(order_type) ?? summary(order_type, 0)
      sums.set(order_type, summary(order_type, own.created + created, own.cancelled + cancelled))
    }
    return [...sums.values()]
  }

  frame(from, to, withTotals) {
    const ids = [...new Set(this.log.slice(from, to).map((batch) => batch.strategy_id))].sort()
    return ids.map((strategy_id) => {
      const before = new Map(this.totals(from, strategy_id).map((each) => [each.order_type, each]))
      const now = this.totals(to, strategy_id)
      const summaries = now
        .map(({ order_type, created, cancelled }) => {
          const less = before.get(order_type) ?? summary(order_type, 0)
          return summary(order_type, created - less.created, cancelled - less.cancelled)
        })
        .filter(({ created, cancelled }) => created || cancelled)
      const batches = this.log.slice(from, to).filter((batch) => batch.strategy_id === strategy_id).length
      return { ...wireUpdate(strategy_id, `e-${from}`, summaries, withTotals ? now : undefined, batches), id: `e-${to}` }
    })
  }

  everything(n) {
    return new Map([1, 2, 3].map((id) => [id, this.totals(n, id)]).filter(([, sums]) => sums.length))
  }
}

for (const withTotals of [false, true]) {
  test(`sums equal the totals at the position, whatever is merged, doubled or left out (totals: ${withTotals})`, () => {
    for (let seed = 1; seed <= 200; seed += 1) {
      const random = chance(seed)
      const journal = new Journal()
      const tally = new Tally()
      tally.begin('base', 'e-0', [])
      let at = 0
      for (let step = 0; step < 30; step += 1) {
        for (let batches = random(3); batches >= 0; batches -= 1) journal.emit(random)
        const head = journal.log.length
        const other = Math.max(0, at - 1 - random(3))
        if (random(4) === 0 && other < at) {
          const frame = journal.frame(other, at, withTotals)
          assert.equal(tally.apply(`e-${at}`, `e-${other}`, frame).outcome, 'known')
        } else if (random(4) === 0 && at + 1 < head) {
          const frame = journal.frame(at + 1, head, withTotals)
          assert.equal(tally.apply(`e-${head}`, `e-${at + 1}`, frame).outcome, 'gap')
        } else {
          const { outcome, mismatches } = tally.apply(`e-${head}`, `e-${at}`, journal.frame(at, head, withTotals))
          assert.equal(outcome, 'applied')
          assert.deepEqual(mismatches, [])
          at = head
        }
        assert.equal(tally.position, `e-${at}`)
        assert.deepEqual([...tally.totals].sort(), [...journal.everything(at)].sort())
      }
    }
  })
}

test('tabs at different positions meet, and hand on what they missed as the difference', () => {
  for (let seed = 1; seed <= 100; seed += 1) {
    const random = chance(seed)
    const journal = new Journal()
    const [ahead, behind, told] = [new Tally(), new Tally(), new Tally()]
    for (const tally of [ahead, behind, told]) tally.begin('base', 'e-0', [])
    for (let batches = 0; batches < 20; batches += 1) journal.emit(random)
    const [some, all] = [1 + random(9), 10 + random(10)]
    for (const tally of [ahead, behind]) tally.apply(`e-${some}`, 'e-0', journal.frame(0, some))
    ahead.apply(`e-${all}`, `e-${some}`, journal.frame(some, all))

    assert.deepEqual(ahead.take(behind.snapshot()), [], 'who is ahead stays there')
    const difference = behind.take(structuredClone(ahead.snapshot()))

    assert.deepEqual(behind.snapshot(), ahead.snapshot())
    assert.deepEqual(difference.map((each) => each.stream.after), difference.map(() => `e-${some}`))
    told.apply(`e-${some}`, 'e-0', journal.frame(0, some))
    told.apply(`e-${all}`, `e-${some}`, difference)
    assert.deepEqual(told.totals, ahead.totals)
  }
})

test('sums of another base are replaced', () => {
  const [one, other] = [new Tally(), new Tally()]
  one.begin('one', 'e-5', [{ strategy_id: 3, summaries: [summary('LIMIT', 9)] }])
  other.begin('other', 'f-1', [{ strategy_id: 4, summaries: [summary('LIMIT', 1)] }])

  assert.equal(one.take(other.snapshot()), null)
  assert.deepEqual([...one.totals], [[4, [summary('LIMIT', 1)]]])
})

test('what is stated wins over what was added, and is told', () => {
  const tally = new Tally()
  tally.begin('base', 'e-0', [])
  const stated = [summary('MARKET', 1), summary('LIMIT', 4)]

  const { mismatches } = tally.apply('e-1', 'e-0', [wireUpdate(3, 'e-0', [summary('LIMIT', 3)], stated)])

  assert.deepEqual(mismatches, [{ strategy_id: 3, own: [summary('LIMIT', 3)], stated, position: 'e-1' }])
  assert.deepEqual(tally.totals.get(3), stated)
})

test('a frame that cannot be read changes nothing', () => {
  const tally = new Tally()
  tally.begin('base', 'e-0', [])

  assert.throws(() => tally.apply('e-1', 'e-0', [wireUpdate(3, 'e-0', [summary('LIMIT', 3)]), { type: 'order_batch_update' }]))

  assert.equal(tally.position, 'e-0')
  assert.equal(tally.totals.size, 0)
})

test('a frame without an id, or with that of the position, is a gap', () => {
  for (const id of [undefined, '', 'e-0']) {
    const tally = new Tally()
    tally.begin('base', 'e-0', [])
    assert.equal(tally.apply(id, 'e-0', [wireUpdate(3, 'e-0', [summary('LIMIT', 3)])]).outcome, 'gap')
    assert.equal(tally.totals.size, 0)
  }
})

test('totals are the same map until they change, and nobody can spoil the sums', () => {
  const tally = new Tally()
  tally.begin('base', 'e-0', [{ strategy_id: 3, summaries: [summary('LIMIT', 1)] }])
  const before = tally.totals
  assert.equal(tally.totals, before)
  assert.throws(() => (before.get(3)[0].created = 5), TypeError)
  before.clear()

  tally.apply('e-1', 'e-0', [wireUpdate(3, 'e-0', [summary('LIMIT', 3)])])

  assert.notEqual(tally.totals, before)
  assert.deepEqual([...tally.totals], [[3, [summary('LIMIT', 4)]]])
})
