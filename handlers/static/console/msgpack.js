// A JSON value as MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md). Writes only, and only what JSON has.

const text = new TextEncoder()

/** The bytes of a value of JSON. What is no integer below 2^53 is written as a float, which is what it is by then. */
export function pack(value) {
  const bytes = []
  write(value, bytes)
  return Uint8Array.from(bytes)
}

function write(value, bytes) {
  if (value === null) bytes.push(0xc0)
  else if (typeof value === 'boolean') bytes.push(value ? 0xc3 : 0xc2)
  else if (typeof value === 'number') writeNumber(value, bytes)
  else if (typeof value === 'string') {
    const encoded = text.encode(value)
    writeHead(encoded.length, 0xa0, 31, 0xd9, bytes)
    for (const byte of encoded) bytes.push(byte)
  } else if (Array.isArray(value)) {
    writeHead(value.length, 0x90, 15, 0xdb, bytes)
    for (const each of value) write(each, bytes)
  } else {
    const entries = Object.entries(value)
    writeHead(entries.length, 0x80, 15, 0xdd, bytes)
    for (const each of entries.flat(1)) write(each, bytes)
  }
}

/** A length: in the first byte where it fits, else behind `wide` (8 bits, strings only), `wide` + 1 or + 2. */
function writeHead(length, small, most, wide, bytes) {
  if (length <= most) bytes.push(small | length)
  else if (length < 0x100 && wide === 0xd9) bytes.push(wide, length)
  else if (length < 0x10000) bytes.push(wide + 1, length >> 8, length & 0xff)
  else bytes.push(wide + 2, ...bytesOf(4, view => view.setUint32(0, length)))
}

function writeNumber(value, bytes) {
  if (!Number.isSafeInteger(value)) bytes.push(0xcb, ...bytesOf(8, view => view.setFloat64(0, value)))
  else if (value >= 0 && value < 0x80) bytes.push(value)
  else bytes.push(0xd3, ...bytesOf(8, view => view.setBigInt64(0, BigInt(value))))
}

function bytesOf(size, set) {
  const view = new DataView(new ArrayBuffer(size))
  set(view)
  return new Uint8Array(view.buffer)
}
