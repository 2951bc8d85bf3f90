import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'

import { TallywireStream } from '../tallywire.js'
import { World, block, catchUp, closing, control, heartbeat, open, reset, settled, summary, update, wireUpdate } from './world.js'

const LIMIT = (created) => [summary('LIMIT', created)]

let world
let stream
let seen

beforeEach(() => {
  world = new World()
})

afterEach(async () => {
  stream?.close()
  stream = undefined
  await settled()
  assert.equal(world.timers, 0, 'a closed stream leaves no timer behind')
})

async function opened(options = {}, ...blocks) {
  stream = new TallywireStream({
    url: 'http://localhost/stream', userId: 7, strategyIds: [3], totals: false, environment: world.environment, ...options,
  })
  seen = []
  const types = ['order_batch_update', 'order_batch_catch_up', 'stream_open', 'stream_reset', 'stream_heartbeat', 'stream_expiring',
    'stream_closing', 'order_hourly_summary', 'totals', 'state', 'error', 'gap', 'mismatch', 'frame']
  for (const type of types) stream.on(type, (event) => seen.push([type, event]))
  await settled()
  if (blocks.length) await world.latest.stream(...blocks)
  return stream
}

const events = (type) => seen.filter(([name]) => name === type).map(([, event]) => event)
const sums = (strategy = 3) => stream.totals.get(strategy)

// ---- asking

test('a request names the stream, and says that it can tell what is missing', async () => {
  await opened({ strategyIds: [3, 4], totals: true })

  const { url, init } = world.latest
  assert.equal(url.search, '?user_id=7&strategy_id=3&strategy_id=4&shape=envelope&heartbeat=event&totals=1')
  assert.deepEqual(init.headers, { Accept: 'text/event-stream' })
  assert.equal(init.cache, 'no-store')
})

test('every strategy is a star, and a query of the page stays', async () => {
  await opened({ url: 'http://localhost/stream?page=5', userId: undefined, strategyIds: '*' })

  assert.equal(world.latest.url.search, '?page=5&strategy_id=*&shape=envelope&heartbeat=event')
})

for (const wrong of [{ strategyIds: [] }, { strategyIds: [0] }, { strategyIds: 3 }, { userId: 'me' }, { auth: 'basic' }, { url: '/stream' }]) {
  test(`options that cannot be are refused at once: ${JSON.stringify(wrong)}`, () => {
    assert.throws(() => new TallywireStream({ url: 'http://localhost/stream', strategyIds: [3], environment: world.environment, ...wrong }), TypeError)
  })
}

// ---- summing

test('updates are added, and told in order', async () => {
  await opened({}, open('e-0'), update(3, 'e-0', 'e-1', LIMIT(2)), update(3, 'e-1', 'e-2', [summary('MARKET', 1), summary('LIMIT', 0, 1)]))

  assert.deepEqual(sums(), [summary('LIMIT', 2, 1), summary('MARKET', 1)])
  assert.equal(stream.position, 'e-2')
  assert.deepEqual(events('order_batch_update').map(({ id, stream: { after } }) => [after, id]), [['e-0', 'e-1'], ['e-1', 'e-2']])
  assert.deepEqual(events('totals').map(({ cause, position }) => [cause, position]), [['open', 'e-0'], ['update', 'e-1'], ['update', 'e-2']])
  assert.deepEqual(events('state').map(({ state }) => state), ['open'])
})

test('a catch-up is told for each strategy, and as a whole', async () => {
  await opened({ strategyIds: [3, 4] }, open('e-0'), catchUp('e-0', 'e-5', [wireUpdate(3, 'e-0', LIMIT(2)), wireUpdate(4, 'e-0', LIMIT(5))]))

  assert.deepEqual([sums(3), sums(4)], [LIMIT(2), LIMIT(5)])
  assert.deepEqual(events('order_batch_update').map((each) => [each.stream.strategy_id, each.id]), [[3, 'e-5'], [4, 'e-5']])
  assert.equal(events('order_batch_catch_up')[0].updates.length, 2)
  assert.equal(events('totals').length, 2)
})

test('with totals sums begin from those stated, and are checked at each frame', async () => {
  await opened({ totals: true }, open('e-5', { totals: [{ strategy_id: 3, summaries: LIMIT(7) }] }), update(3, 'e-5', 'e-6', LIMIT(1), LIMIT(8)))

  assert.deepEqual(sums(), LIMIT(8))
  assert.deepEqual(events('mismatch'), [])
})

test('sums that are not what is stated are replaced, and that is told', async () => {
  await opened({ totals: true }, open('e-5', { totals: [{ strategy_id: 3, summaries: LIMIT(7) }] }), update(3, 'e-5', 'e-6', LIMIT(1), LIMIT(9)))

  assert.deepEqual(sums(), LIMIT(9))
  assert.deepEqual(events('mismatch'), [{ strategy_id: 3, own: LIMIT(8), stated: LIMIT(9), position: 'e-6' }])
  assert.equal(events('totals').at(-1).cause, 'mismatch')
})

test('a reset replaces every sum', async () => {
  await opened({ strategyIds: [3, 4] }, open('e-0'), update(4, 'e-0', 'e-1', LIMIT(2)))
  await world.latest.end()
  await world.pass(60_000)

  await world.latest.stream(reset('f-9', [{ strategy_id: 3, summaries: LIMIT(50) }]))

  assert.deepEqual([...stream.totals], [[3, LIMIT(50)]])
  assert.equal(stream.position, 'f-9')
  assert.deepEqual(events('stream_reset').map(({ data }) => data.reason), ['trimmed'])
  assert.equal(events('totals').at(-1).cause, 'reset')
})

test('the hour that is over is told, and not added', async () => {
  await opened({}, open('e-0'), control('order_hourly_summary', { strategy_id: 3, hour: '2026-01-31T14:00:00.000Z', summaries: LIMIT(5) }))

  assert.equal(events('order_hourly_summary').length, 1)
  assert.equal(events('totals').length, 1)
})

test('unknown events and fields do no harm, and an inspector sees them', async () => {
  await opened({}, open('e-0'), 'event: of_the_future\ndata: {"x":1}\n\n', 'event: toString\ndata: {}\n\n', ':\n', update(3, 'e-0', 'e-1', LIMIT(1)))

  assert.deepEqual(sums(), LIMIT(1))
  assert.deepEqual(events('frame').map(({ event }) => event), ['stream_open', 'of_the_future', 'toString', 'order_batch_update'])
})

// ---- coming back

test('after a cut it comes back with its position, after the time that the server named', async () => {
  await opened({}, open('e-0', { retry: 700 }), update(3, 'e-0', 'e-1', LIMIT(1)))
  await world.latest.cut()
  assert.equal(stream.state, 'waiting')

  await world.pass(699)
  assert.equal(world.exchanges.length, 1)
  await world.pass(1)

  assert.equal(world.exchanges.length, 2)
  assert.equal(world.latest.lastEventId, 'e-1')
  await world.latest.stream(open('e-1', { resumed: true }), update(3, 'e-1', 'e-4', LIMIT(6)))
  assert.deepEqual(sums(), LIMIT(7))
  assert.equal(stream.state, 'open')
})

test('a frame that was cut in its last byte is not counted, and comes again', async () => {
  const frame = update(3, 'e-0', 'e-1', LIMIT(1))
  await opened({}, open('e-0'), frame.slice(0, -1))
  await world.latest.end()
  await world.pass(1000)

  assert.equal(world.latest.lastEventId, 'e-0')
  assert.deepEqual(sums(), undefined)
})

test('while there is no way it waits longer each time, drawn apart, up to a limit', async () => {
  world.chance = 1
  await opened({ maxDelayMs: 20_000 })
  const waits = []
  for (let failures = 0; failures < 8; failures += 1) {
    await world.latest.fail()
    waits.push(events('state').at(-1).delay_ms)
    await world.pass(waits.at(-1))
  }

  assert.deepEqual(waits, [1500, 3000, 6000, 12_000, 20_000, 20_000, 20_000, 20_000])
  assert.equal(world.exchanges.length, 9)
  world.chance = 0
  await world.latest.fail()
  assert.equal(events('state').at(-1).delay_ms, 500, 'from the shortest time to the longest')
})

test('a server that says when to come back is obeyed, however early the network is there', async () => {
  await opened({}, open('e-0', { retry: 300 }), closing('draining', true, 9000))
  assert.equal(stream.state, 'waiting')
  assert.equal(events('state').at(-1).error.reason, 'draining')
  world.page.dispatchEvent(new Event('online'))

  await world.pass(8999)
  assert.equal(world.exchanges.length, 1)
  await world.pass(1)
  assert.equal(world.exchanges.length, 2)
})

test('the network that is back ends the wait', async () => {
  await opened()
  await world.latest.fail()
  world.page.dispatchEvent(new Event('online'))
  await settled()

  assert.equal(world.exchanges.length, 2)
})

test('a stream that is ended for good is closed, and says why', async () => {
  await opened({}, open('e-0'), closing('revoked', false))
  await world.pass(3_600_000)

  assert.equal(world.exchanges.length, 1)
  assert.equal(stream.state, 'closed')
  assert.deepEqual([stream.error.kind, stream.error.reason, stream.error.final], ['closing', 'revoked', true])
})

for (const [status, problem, isFinal] of [
  [404, { code: 'not_found', retry: 'no' }, true],
  [422, { code: 'invalid_query', retry: 'no', detail: 'strategy_id is required' }, true],
  [405, null, true],
  [429, null, false],
  [502, null, false],
  [503, { code: 'busy', retry: 'later' }, false],
  [500, null, false],
  [204, null, true],
]) {
  test(`${status} is ${isFinal ? 'for good' : 'for now'}`, async () => {
    await opened()
    if (status === 204) await world.latest.refuse(204)
    else await world.latest.refuse(status, problem)

    assert.equal(stream.state, isFinal ? 'closed' : 'waiting')
    const [error] = events('error')
    assert.deepEqual([error.kind, error.status, error.final, error.problem?.code], ['refused', status, isFinal, problem?.code])
  })
}

test('Retry-After is the least that it waits', async () => {
  await opened()
  await world.latest.refuse(503, { retry: 'later' }, { 'Retry-After': '30' })

  assert.ok(events('state').at(-1).delay_ms >= 30_000)
})

test('the time of Retry-After is the least, however early the network is there', async () => {
  await opened()
  await world.latest.refuse(503, { retry: 'later' }, { 'Retry-After': '30' })
  world.page.dispatchEvent(new Event('online'))
  await world.pass(29_000)

  assert.equal(world.exchanges.length, 1)
  await world.pass(3000)
  assert.equal(world.exchanges.length, 2)
})

test('Retry-After may be a date', async () => {
  await opened()
  // The clock of the world stands at 1,000 seconds.
  await world.latest.refuse(503, { retry: 'later' }, { 'Retry-After': new Date(1_060_000).toUTCString() })

  assert.ok(events('state').at(-1).delay_ms >= 60_000)
})

test('a server that says no time is not asked without a pause', async () => {
  await opened({}, open('e-0', { retry: 0 }))
  await world.latest.end()
  for (let attempt = 0; attempt < 12; attempt += 1) {
    await world.pass(60_000)
    await world.latest.fail()
  }

  assert.ok(events('state').at(-1).delay_ms > 1000)
})

for (const [name, options, retry] of [['a server', {}, 2 ** 31], ['a page', { maxDelayMs: Infinity }, 1000]]) {
  test(`no timer is asked for more than it can hold, whatever ${name} names`, async () => {
    const { setTimeout } = world.environment
    const environment = { ...world.environment, setTimeout: (callback, ms) => (assert.ok(ms < 2 ** 31, `${ms} ms`), setTimeout(callback, ms)) }
    await opened({ environment, ...options }, open('e-0', { retry }))
    await world.latest.end()
    for (let attempt = 0; attempt < 40 && stream.state === 'waiting'; attempt += 1) {
      assert.ok(events('state').at(-1).delay_ms < 2 ** 31)
      await world.pass(events('state').at(-1).delay_ms)
      await world.latest.fail()
    }

    assert.equal(stream.state, 'waiting')
  })
}

test('a page of something in between is not taken for a stream', async () => {
  await opened()
  await world.latest.refuse(200, null, { 'Content-Type': 'text/html' })

  assert.equal(stream.state, 'waiting')
})

// ---- what is missing

test('a frame that lacks its predecessor is not added: the stream resumes at once', async () => {
  await opened({}, open('e-0'), update(3, 'e-0', 'e-1', LIMIT(1)), update(3, 'e-2', 'e-3', LIMIT(4)))

  assert.deepEqual(events('gap'), [{ noticed_by: 'after', position: 'e-1', stated: 'e-2' }])
  assert.equal(world.exchanges[0].hasEnded, true)
  assert.equal(world.exchanges.length, 2)
  assert.equal(world.latest.lastEventId, 'e-1')
  await world.latest.stream(open('e-1', { resumed: true }), update(3, 'e-1', 'e-3', LIMIT(6)))
  assert.deepEqual(sums(), LIMIT(7))
})

test('a frame that comes twice counts once, and ends nothing', async () => {
  const [one, two] = [update(3, 'e-0', 'e-1', LIMIT(1)), update(3, 'e-1', 'e-2', LIMIT(2))]
  await opened({}, open('e-0'), one, one, two, one, two)

  assert.deepEqual(sums(), LIMIT(3))
  assert.equal(world.exchanges.length, 1)
  assert.equal(events('order_batch_update').length, 2)
})

test('a heartbeat with another position tells of a frame that was withheld', async () => {
  await opened({}, open('e-0'), heartbeat('e-1'))

  assert.deepEqual(events('gap'), [{ noticed_by: 'heartbeat', position: 'e-0', stated: 'e-1' }])
  assert.equal(world.latest.lastEventId, 'e-0')
  assert.equal(world.exchanges.length, 2)
})

test('a repair that does not help is not repeated in haste', async () => {
  await opened({}, open('e-0'), update(3, 'e-0', 'e-1', LIMIT(1)))
  await world.latest.send(heartbeat('e-2'))
  assert.equal(world.exchanges.length, 2)
  await world.latest.stream(open('e-1', { resumed: true }), update(3, 'e-2', 'e-3', LIMIT(1)))

  assert.equal(world.exchanges.length, 2)
  assert.equal(stream.state, 'waiting')
})

test('a stream that resumes somewhere else is not believed', async () => {
  await opened({}, open('e-4'))
  await world.latest.end()
  await world.pass(1000)
  await world.latest.stream(open('e-9', { resumed: true }))

  assert.equal(stream.position, 'e-4')
  assert.equal(events('gap').length, 1)
})

test('a stream that starts anew although it was to resume begins the sums anew', async () => {
  await opened({ totals: true }, open('e-4', { totals: [{ strategy_id: 3, summaries: LIMIT(1) }] }))
  await world.latest.end()
  await world.pass(1000)
  await world.latest.stream(open('e-9', { totals: [{ strategy_id: 3, summaries: LIMIT(6) }] }))

  assert.deepEqual(sums(), LIMIT(6))
  assert.equal(events('totals').at(-1).cause, 'open')
})

test('silence of nearly two heartbeats is a dead connection', async () => {
  await opened({}, open('e-0', { heartbeat: 10 }))
  await world.pass(9000)
  await world.latest.send(heartbeat('e-0'))
  await world.pass(15_000)
  assert.equal(world.exchanges.length, 1)

  await world.pass(5000)

  assert.equal(world.exchanges.length, 2)
  assert.equal(world.latest.lastEventId, 'e-0')
  assert.equal(events('error').at(-1).kind, 'silent')
})

test('a machine that slept notices at its first tick', async () => {
  await opened({}, open('e-0', { heartbeat: 10 }))
  world.sleep(3_600_000)
  await world.pass(1500)

  assert.equal(world.exchanges.length, 2)
})

test('a request that is not answered is given up', async () => {
  await opened()
  await world.pass(31_000)

  assert.equal(world.exchanges[0].hasEnded, true)
  assert.equal(events('error')[0].kind, 'silent')
})

for (const [name, text] of Object.entries({
  'is no JSON': 'event: order_batch_update\ndata: {"type"\nid: e-1\n\n',
  'lacks what it must have': 'event: order_batch_update\ndata: {"type":"order_batch_update"}\nid: e-1\n\n',
  'is too long': `data: ${'x'.repeat(2000)}`,
})) {
  test(`a frame that ${name} ends the connection, and the stream resumes`, async () => {
    await opened({ maxFrameLength: 1000 }, open('e-0'), text)
    assert.equal(events('error').at(-1).kind, 'frame')
    await world.pass(60_000)

    assert.equal(world.exchanges[1].lastEventId, 'e-0')
  })
}

// ---- tokens

test('a token is asked for at each attempt, and stands in no URL', async () => {
  let tokens = 0
  await opened({ token: async () => `token-${(tokens += 1)}` }, open('e-0'))
  await world.latest.end()
  await world.pass(1000)

  assert.deepEqual(world.exchanges.map((each) => each.authorization), ['Bearer token-1', 'Bearer token-2'])
  assert.ok(world.exchanges.every(({ url }) => !url.href.includes('token')))
})

test('without a token there is no header', async () => {
  await opened({ token: () => null })

  assert.equal('Authorization' in world.latest.init.headers, false)
})

test('a token that is refused is renewed once, at once', async () => {
  const reasons = []
  const token = (reason) => (reasons.push(reason), reason)
  await opened({ token })
  await world.latest.refuse(401, { code: 'unauthorized', retry: 'no' })
  assert.equal(world.latest.authorization, 'Bearer refused')
  await world.latest.refuse(401, { code: 'unauthorized', retry: 'no', detail: 'it has ended' })

  assert.deepEqual(reasons, ['connect', 'refused'])
  assert.equal(stream.state, 'closed')
  assert.deepEqual([stream.error.status, stream.error.message, stream.error.final], [401, 'it has ended', true])
})

test('a stream that was open has its renewal again', async () => {
  await opened({ token: (reason) => reason })
  await world.latest.refuse(401)
  await world.latest.stream(open('e-0'))
  await world.latest.end()
  await world.pass(1000)
  await world.latest.refuse(403)

  assert.equal(world.latest.authorization, 'Bearer refused')
  assert.equal(stream.state, 'connecting')
})

test('401 without anything to renew is for good', async () => {
  await opened()
  await world.latest.refuse(401)

  assert.equal(stream.state, 'closed')
})

test('a token that cannot be had now is tried for later', async () => {
  const token = mock.fn(() => Promise.reject(new Error('the login service is away')))
  await opened({ token })

  assert.equal(stream.state, 'waiting')
  assert.equal(events('error')[0].kind, 'token')
  await world.pass(60_000)
  assert.ok(token.mock.callCount() > 2)
})

test('a token that never comes is given up', async () => {
  await opened({ token: () => new Promise(() => {}) })
  await world.pass(35_000)

  assert.equal(events('error')[0].kind, 'silent')
})

const expiring = (seconds) => control('stream_expiring', { expires_at: '', seconds_left: seconds })

test('before its token ends a stream moves over, and the old connection counts until then', async () => {
  let give
  const token = (reason) => (reason === 'expiring' ? new Promise((resolve) => (give = resolve)) : 'first')
  await opened({ token }, open('e-0', { heartbeat: 1000 }), expiring(60))
  await world.pass(30_000)
  assert.equal(world.exchanges.length, 1)
  await world.latest.send(update(3, 'e-0', 'e-1', LIMIT(1)))
  give('second')
  await settled()

  assert.equal(world.exchanges[0].hasEnded, true)
  assert.equal(world.exchanges.length, 2)
  assert.equal(world.latest.authorization, 'Bearer second')
  assert.equal(world.latest.lastEventId, 'e-1')
  assert.deepEqual(events('error'), [])
  await world.latest.stream(open('e-1', { resumed: true }), update(3, 'e-1', 'e-2', LIMIT(5)))
  assert.deepEqual(sums(), LIMIT(6))
})

test('the same token again changes nothing', async () => {
  await opened({ token: () => 'same' }, open('e-0', { heartbeat: 1000 }), expiring(60))
  await world.pass(60_000)

  assert.equal(world.exchanges.length, 1)
})

test('a renewal that fails is told, and the stream goes on', async () => {
  const token = (reason) => {
    if (reason === 'expiring') throw new Error('not now')
    return 'first'
  }
  await opened({ token }, open('e-0', { heartbeat: 1000 }), expiring(60))
  await world.pass(60_000)

  assert.equal(world.exchanges.length, 1)
  assert.equal(events('error')[0].kind, 'token')
  assert.equal(stream.state, 'open')
})

test('behind the end of a token the next one is asked for', async () => {
  const reasons = []
  await opened({ token: (reason) => (reasons.push(reason), 'a token') }, open('e-0'), closing('token_expired', true, 100))
  await world.pass(100)

  assert.deepEqual(reasons, ['connect', 'expiring'])
})

test('a session is made of the token, once, and again of the next', async () => {
  const tokens = ['one', 'one', 'two']
  await opened({ auth: 'session', token: () => tokens.shift() }, open('e-0'))
  for (let attempt = 0; attempt < 2; attempt += 1) {
    await world.latest.end()
    await world.pass(1000)
    await world.latest.stream(open('e-0', { resumed: true }))
  }

  assert.deepEqual(world.posts.map(({ url, init }) => [url.pathname + url.search, init.headers.Authorization, init.credentials]),
    [['/stream/session', 'Bearer one', 'include'], ['/stream/session', 'Bearer two', 'include']])
  assert.ok(world.exchanges.every(({ init }) => init.credentials === 'include' && !('Authorization' in init.headers)))
})

test('a session that does not count any more is made again', async () => {
  await opened({ auth: 'session', token: () => 'one' })
  await world.latest.refuse(401)

  assert.equal(world.posts.length, 2)
  assert.equal(world.exchanges.length, 2)
})

test('a ticket is asked for at each attempt, and the stream has no header of its own', async () => {
  await opened({ auth: 'ticket', token: () => 'one' }, open('e-0'))
  await world.latest.end()
  await world.pass(1000)

  assert.deepEqual(world.posts.map(({ url, init }) => [url.pathname, init.headers.Authorization]), Array(2).fill(['/stream/ticket', 'Bearer one']))
  assert.deepEqual(world.exchanges.map(({ url }) => url.searchParams.get('ticket')), ['ticket-1', 'ticket-2'])
  assert.ok(world.exchanges.every(({ init }) => !('Authorization' in init.headers)))
})

test('a ticket that is refused is one that the token does not allow', async () => {
  world.answerPost = () => new Response('{"code":"forbidden","retry":"no"}', { status: 403, headers: { 'Content-Type': 'application/problem+json' } })
  await opened({ auth: 'ticket', token: () => 'one' })

  assert.equal(world.posts.length, 2)
  assert.equal(stream.error.problem.code, 'forbidden')
})

// ---- the end, and those who listen

test('what a listener throws harms nobody else', async () => {
  const console_ = mock.method(console, 'error', () => {})
  await opened()
  stream.on('totals', () => {
    throw new Error('a mistake of the page')
  })
  const late = []
  stream.on('totals', ({ cause }) => late.push(cause))
  await world.latest.stream(open('e-0'), update(3, 'e-0', 'e-1', LIMIT(1)))

  assert.deepEqual(late, ['open', 'update'])
  assert.equal(console_.mock.callCount(), 2)
  console_.mock.restore()
})

test('who does not listen any more hears nothing', async () => {
  await opened()
  const heard = []
  const off = stream.on('totals', ({ cause }) => heard.push(cause))
  await world.latest.stream(open('e-0'))
  off()
  await world.latest.send(update(3, 'e-0', 'e-1', LIMIT(1)))

  assert.deepEqual(heard, ['open'])
})

test('a stream that is closed within a frame delivers nothing of what is behind it', async () => {
  await opened()
  stream.on('order_batch_update', () => stream.close())
  await world.latest.stream(open('e-0'), update(3, 'e-0', 'e-1', LIMIT(1)) + update(3, 'e-1', 'e-2', LIMIT(1)))

  assert.equal(events('order_batch_update').length, 1)
  assert.equal(seen.at(-1)[0], 'state')
  assert.equal(world.latest.hasEnded, true)
})

test('a listener is told nothing behind the end, whoever of its fellows has brought it about', async () => {
  await opened()
  const heard = []
  const offs = []
  stream.on('stream_open', () => offs[0]())
  offs.push(stream.on('stream_open', () => heard.push('taken off')))
  stream.on('order_batch_update', () => stream.close())
  stream.on('order_batch_update', () => heard.push('closed'))
  await world.latest.stream(open('e-0'), update(3, 'e-0', 'e-1', LIMIT(1)))

  assert.equal(stream.state, 'closed')
  assert.deepEqual(heard, [])
})

test('why it is closed is known, also where the page closes it for that', async () => {
  await opened()
  stream.on('error', ({ final }) => final && stream.close())
  await world.latest.refuse(404, { code: 'not_found', retry: 'no' })

  assert.equal(stream.error?.problem.code, 'not_found')
  assert.deepEqual(events('state').at(-1).error, stream.error)
})

test('a signal closes it, before and after its start', async () => {
  const controller = new AbortController()
  await opened({ signal: controller.signal }, open('e-0'))
  controller.abort()
  assert.equal(stream.state, 'closed')
  assert.equal(stream.error, null)

  await opened({ signal: AbortSignal.abort() })
  assert.equal(stream.state, 'closed')
  assert.equal(world.exchanges.length, 1)
})

test('the next visit goes on from what the last one kept', async () => {
  await opened({}, open('e-0'), update(3, 'e-0', 'e-1', LIMIT(4)))
  const kept = JSON.parse(JSON.stringify(stream.snapshot()))
  stream.close()
  await opened({ from: kept })
  assert.equal(world.latest.lastEventId, 'e-1')
  await world.latest.stream(open('e-1', { resumed: true }), update(3, 'e-1', 'e-3', LIMIT(1)))

  assert.deepEqual(sums(), LIMIT(5))
})

test('sums that begin with strategies that the last visit did not have are told', async () => {
  const totals = [{ strategy_id: 3, summaries: LIMIT(4) }, { strategy_id: 4, summaries: LIMIT(9) }]
  const from = { base: 'one', position: 'e-1', strategies: [{ ...totals[0], batches: 1, timestamp: null }] }
  await opened({ from, strategyIds: [3, 4], totals: true }, open('e-1', { resumed: true, totals }))

  assert.deepEqual(events('mismatch'), [])
  assert.deepEqual(events('totals').map((event) => [...event.totals]), [totals.map((each) => [each.strategy_id, each.summaries])])
})

test('a block without data is no event', async () => {
  await opened({}, open('e-0'), 'event: order_batch_update\nid: e-1\n\n', block('order_batch_update', wireUpdate(3, 'e-0', LIMIT(1)), 'e-1'))

  assert.deepEqual(sums(), LIMIT(1))
})
