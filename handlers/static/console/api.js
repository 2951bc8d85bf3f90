// Calls to this server, with the key when there is one. The key is a variable of this module and nothing else: no
// storage, no URL, no log has it, and a reload forgets it.

let key = null
let asksForKey = false
let declined = false
let asking = null
let ask = async () => null
let onKeyChange = () => {}

/** A refusal. `code`, `status`, `detail`, `errors` as in the problem+json of the server; `code` is `unreachable` when it
 * did not answer, and `key_needed` when a key was asked for and none given. */
export class Problem extends Error {
  constructor({ status = 0, code = 'unreachable', title = '', detail = '', errors = [], retry = '', request_id = '' }) {
    super(detail || title || code)
    this.name = 'Problem'
    Object.assign(this, { status, code, title, detail, errors, retry, requestId: request_id })
  }
}

const NO_KEY = { code: 'key_needed', status: 401, title: 'A key is needed', detail: 'No key was given, so nothing was asked.' }

export const api = {
  /** JSON (or text, for a text type) of a GET. Parameters that are null, undefined or '' are left out; arrays repeat.
   * Throws Problem. */
  get: (path, parameters = {}, options = {}) => api.request('GET', path, { parameters, ...options }),

  /** The same with any method. `body`: an object is sent as JSON, a string as it is. `headers` come on top.
   * Throws Problem, and AbortError when `signal` says so. */
  async request(method, path, { parameters, body, headers = {}, signal } = {}) {
    const isText = typeof body === 'string' || body === undefined
    const response = await api.fetch(path + query(parameters), {
      method,
      signal,
      headers: { ...(isText ? {} : { 'Content-Type': 'application/json' }), ...headers },
      body: isText ? body : JSON.stringify(body),
    })
    if (!response.ok) throw await problemOf(response)
    const type = response.headers.get('Content-Type') ?? ''
    return type.includes('json') ? response.json() : response.text()
  },

  /** As window.fetch, with the key, and asking for one when it is missing or does not count. Answers the Response,
   * whatever its status; throws Problem when there is none, or no key was given. Also what a stream client can use as
   * its `fetch`. */
  async fetch(path, init = {}) {
    if (asksForKey && key === null) await needKey('')
    for (;;) {
      const used = key
      const headers = new Headers(init.headers)
      if (used !== null) headers.set('Authorization', `Bearer ${used}`)
      const response = await reach(path, { ...init, headers, credentials: 'omit', cache: 'no-store' })
      if (response.status !== 401) return response
      if (used !== key) continue // another call has found a better one meanwhile
      const problem = await problemOf(response)
      key = null
      if (declined) throw problem
      await needKey(used === null ? '' : 'That key does not count here. It may have been replaced.')
    }
  },

  /** Whether a key is in use. */
  get hasKey() {
    return key !== null
  },

  /** Whoever forgets it on purpose is not asked for it at once. */
  forgetKey() {
    key = null
    declined = true
    onKeyChange()
  },

  /** Ask for a key now, whether one is in use or not. */
  async enterKey() {
    declined = false
    await needKey('').catch(() => {})
  },
}

/** Whom to ask for a key: `(problem) => Promise<string|null>`. Called by the shell. */
export function askWith(dialog, whenChanged) {
  ask = dialog
  onKeyChange = whenChanged
}

/** From the console's config: nobody is asked where nobody has to be. */
export function setAsksForKey(does) {
  asksForKey = does
}

async function needKey(problem) {
  if (declined) throw new Problem(NO_KEY)
  // One dialog for all the calls that wait.
  asking ??= askFor(problem).finally(() => { asking = null })
  const given = await asking
  if (given === null) {
    declined = true
    onKeyChange()
    throw new Problem(NO_KEY)
  }
  key = given
  onKeyChange()
}

/** A key that a header can carry; null where none is given. What came along from where it was copied is no key. */
async function askFor(problem) {
  let given = await ask(problem)
  while (given !== null && !/^[\x21-\x7e]+$/.test(given)) {
    given = await ask('That is no key: a key has no blanks, and only letters, digits and signs of ASCII. Copy it again.')
  }
  return given
}

async function reach(path, init) {
  try {
    return await fetch(path, init)
  } catch (error) {
    if (error.name === 'AbortError' || error.name === 'TimeoutError') throw error
    throw new Problem({ title: 'The server does not answer', detail: 'It may be stopped, or restarting, or the network is gone.' })
  }
}

/** The Problem that a response tells of. */
export async function problemOf(response) {
  const type = response.headers.get('Content-Type') ?? ''
  const text = await response.text()
  if (type.includes('problem+json')) {
    try {
      return new Problem(JSON.parse(text))
    } catch { /* something in between has cut it */ }
  }
  return new Problem({ status: response.status, code: `http_${response.status}`, title: response.statusText, detail: text.slice(0, 300) })
}

/** `?a=1&b=2&b=3`, or '' . */
export function query(parameters = {}) {
  const pairs = Object.entries(parameters ?? {}).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value]).filter(each => each !== null && each !== undefined && each !== '')
      .map(each => [name, String(each)]))
  return pairs.length ? `?${new URLSearchParams(pairs)}` : ''
}
