import assert from 'node:assert/strict'
import { test } from 'node:test'

import { EventParser } from '../tallywire.js'

const bytes = (text) => new TextEncoder().encode(text)

const shown = ({ event, data, id, retry }) => [event, data, id, retry]

const parsed = (pieces) => {
  const parser = new EventParser()
  return pieces.flatMap((piece) => parser.feed(piece)).map(shown)
}

/** By the words of WHATWG HTML, 9.2.6: a stream, and its blocks as [event, data, id, retry]. */
const STREAMS = {
  'an event': ['event: a\ndata: b\nid: c\n\n', [['a', 'b', 'c', null]]],
  'no name is message': ['data: b\n\n', [['message', 'b', null, null]]],
  'several lines of data': ['data: a\ndata:\ndata: b\n\n', [['message', 'a\n\nb', null, null]]],
  'one blank behind the colon goes': ['data:  a\n\ndata:b\n\n', [['message', ' a', null, null], ['message', 'b', null, null]]],
  'a field without a colon': ['data\n\n', [['message', '', null, null]]],
  'a colon in the value': ['data: a: b\n\n', [['message', 'a: b', null, null]]],
  'CR': ['data: a\rid: 1\r\rdata: b\r\r', [['message', 'a', '1', null], ['message', 'b', null, null]]],
  'CRLF': ['data: a\r\nid: 1\r\n\r\ndata: b\r\n\r\n', [['message', 'a', '1', null], ['message', 'b', null, null]]],
  'mixed': ['data: a\r\ndata: b\rdata: c\n\r\n', [['message', 'a\nb\nc', null, null]]],
  'a byte order mark': ['\ufeffdata: a\n\n', [['message', 'a', null, null]]],
  'a second byte order mark is a name': ['\ufeff\ufeffdata: a\ndata: b\n\n', [['message', 'b', null, null]]],
  'comments': [':\n: hello\ndata: a\n:in between\n\n:\n', [['message', 'a', null, null]]],
  'a comment heartbeat right before an event': [':\nevent: a\ndata: b\n\n', [['a', 'b', null, null]]],
  'empty lines': ['\n\n\ndata: a\n\n\n\n', [['message', 'a', null, null]]],
  'no data is no event, and its id counts': ['event: a\nid: 1\n\n', [['a', null, '1', null]]],
  'an id with NUL is none': ['data: a\nid: 1\0\n\n', [['message', 'a', null, null]]],
  'an empty id': ['data: a\nid\n\n', [['message', 'a', '', null]]],
  'retry is digits': ['retry: 15\ndata: a\n\nretry: 1.5\ndata: b\n\nretry: -1\ndata: c\n\nretry:\ndata: d\n\n',
    [['message', 'a', null, 15], ['message', 'b', null, null], ['message', 'c', null, null], ['message', 'd', null, null]]],
  'unknown fields': ['what: ever\ndata: a\n\n', [['message', 'a', null, null]]],
  'names are case-sensitive': ['Data: a\ndata: b\n\n', [['message', 'b', null, null]]],
  'more than ASCII': ['event: ä\ndata: €𝄞\n\n', [['ä', '€𝄞', null, null]]],
  'an incomplete block is none': ['data: a\nid: 1\n\ndata: b\nid: 2\n', [['message', 'a', '1', null]]],
}

for (const [name, [stream, expected]] of Object.entries(STREAMS)) {
  test(`${name}: whole, byte by byte, and cut in two anywhere`, () => {
    const whole = bytes(stream)
    assert.deepEqual(parsed([whole]), expected)
    assert.deepEqual(parsed([...whole].map((byte) => Uint8Array.of(byte))), expected)
    for (let cut = 0; cut <= whole.length; cut += 1) {
      assert.deepEqual(parsed([whole.subarray(0, cut), whole.subarray(cut)]), expected, `cut behind byte ${cut}`)
    }
  })
}

test('the block of an inspector has its lines as they came', () => {
  const [frame] = new EventParser().feed(bytes('event: a\n: hello\nid: 1\n\n'))
  assert.equal(frame.raw, 'event: a\n: hello\nid: 1')
})

test('a block that is too long is refused, however it comes', () => {
  for (const line of ['data: a\n', 'data: a']) {
    const parser = new EventParser(100)
    assert.throws(() => {
      for (let lines = 0; lines < 100; lines += 1) parser.feed(bytes(line))
    }, RangeError)
  }
})

test('blocks and comments without end take no room', () => {
  const parser = new EventParser(100)
  for (let lines = 0; lines < 1000; lines += 1) {
    parser.feed(bytes(':\n'))
    assert.equal(parser.feed(bytes('data: a\n\n')).length, 1)
  }
  for (let lines = 0; lines < 1000; lines += 1) parser.feed(bytes(': a comment\n'))
})
