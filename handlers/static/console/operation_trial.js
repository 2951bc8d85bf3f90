// Tries an operation: a form of its parameters and its body, the same as a line for a shell, and what is answered.
import { Problem } from './api.js'
import { badge, bytes, code, el, field } from './dom.js'
import { textOf } from './event_stream.js'
import { pack } from './msgpack.js'
import { curl, limitsOf, missingIn, placeOf, requestOf, typeOf } from './openapi_document.js'
import { lazy, shownValue } from './operation_view.js'

const MOST_SHOWN = 200_000 // characters of a body: more of it would hold the page up
const MOST_STREAM_SHOWN = 20_000 // characters of a stream, the newest: what came before is forgotten
const STREAM_MS = 10 * 60_000 // a stream that is tried ends by itself
const MSGPACK = 'application/msgpack'

/** The form of an operation. `place`: {base, canTry, why} (the origin it is at; whether a page may call it). */
export function trialOf(document, operation, place, context) {
  const controls = operation.parameters.map(parameter => [parameter, controlOf(parameter)])
  const body = operation.bodies.length ? bodyEditor(operation.bodies, () => draw()) : null
  const answer = el('div', { class: 'stack', 'aria-live': 'polite' })
  const shell = el('div')
  const say = el('p', { class: 'hint bad-text', role: 'alert', hidden: true })
  const send = el('button', { type: 'submit', class: 'primary' }, operation.isStream ? 'Open the stream' : 'Send')
  const stop = el('button', { type: 'button', hidden: true }, 'Stop')
  const confirmation = el('div')

  const typed = () => Object.fromEntries(controls.map(([parameter, control]) => [placeOf(parameter), control.value.trim()]))
  const wanted = () => {
    const { target, headers } = requestOf(operation, typed())
    return {
      method: operation.method,
      url: place.base + target,
      headers: { ...(body ? { 'Content-Type': body.mediaType() } : {}), ...headers },
      body: body?.text(),
    }
  }
  const draw = () => {
    const request = wanted()
    const isPacked = body?.mediaType() === MSGPACK
    shell.replaceChildren(code(curl({
      ...request,
      body: isPacked ? undefined : onOneLine(request),
      bodyFile: isPacked ? 'batch.msgpack' : undefined,
      asksForKey: needsKey(operation, context),
      isStream: operation.isStream,
    })))
    confirmation.replaceChildren()
  }

  async function submit(event) {
    event.preventDefault()
    const missing = missingIn(operation, typed())
    say.hidden = missing.length === 0
    say.textContent = missing.length ? `${missing.join(', ')} ${missing.length > 1 ? 'are' : 'is'} needed.` : ''
    for (const [parameter, control] of controls) control.setAttribute('aria-invalid', missing.includes(parameter.name))
    if (missing.length) return controls.find(([parameter]) => missing.includes(parameter.name))[1].focus()
    if (!operation.isDestructive) return run()
    confirmation.replaceChildren(confirmForm(operation, wordToType(operation, typed(), body?.text()), () => {
      confirmation.replaceChildren()
      run()
    }, () => { confirmation.replaceChildren(); send.focus() }))
    confirmation.querySelector('input').focus()
  }

  async function run() {
    const stopping = new AbortController()
    const end = () => stopping.abort()
    stop.addEventListener('click', end)
    stop.hidden = !operation.isStream
    send.disabled = true
    answer.replaceChildren(el('p', { class: 'muted', text: 'Waiting for the answer…' }))
    try {
      await show(document, operation, wanted(), AbortSignal.any([context.signal, stopping.signal]), answer, context)
    } catch (error) {
      answer.replaceChildren(...[context.problem(error)].filter(Boolean))
    }
    stop.removeEventListener('click', end)
    stop.hidden = true
    send.disabled = false
  }

  draw()
  const form = el('form', { class: 'stack', novalidate: true, on: { submit, input: draw, change: draw } },
    controls.length > 0 && el('div', { class: 'parameters' }, controls.map(([parameter, control]) =>
      field(parameter.required ? `${parameter.name} (needed)` : parameter.name, control, hintOf(document, parameter)))),
    body?.element,
    el('p', { class: 'label', text: 'The same in a shell' }), shell,
    place.canTry
      ? el('div', { class: 'toolbar middle' }, send, stop, el('span', { class: 'hint mono', text: place.base }))
      : el('p', { class: 'notice', text: place.why }),
    say)
  return el('div', { class: 'stack' }, form, confirmation, answer)
}

/** A body as it is pasted. Long numbers would not survive being read. */
function onOneLine({ headers, body }) {
  if (headers['Content-Type'] !== 'application/json' || /\d{16}/.test(body)) return body
  try {
    return JSON.stringify(JSON.parse(body))
  } catch {
    return body
  }
}

/** Whether a call needs a key here: on a server that asks for keys, and for a route that takes one. */
const needsKey = (operation, context) => context.config.internal_auth === 'keys' && operation.role !== ''

// ---- the form

function controlOf(parameter) {
  const { schema, example, required } = parameter
  if (schema.enum) {
    return el('select', {}, el('option', { value: '', text: '(not given)' }), schema.enum.map(each => el('option', { value: each, text: each })))
  }
  const text = Array.isArray(example) ? example.join(' ') : String(example)
  return el('input', {
    type: 'text',
    autocomplete: 'off',
    spellcheck: 'false',
    inputmode: schema.type === 'integer' ? 'numeric' : null,
    placeholder: text,
    value: required ? text : null,
  })
}

function hintOf(document, parameter) {
  const { schema } = parameter
  const limits = limitsOf(schema.type === 'array' ? { maxItems: schema.maxItems } : schema)
  const words = [
    schema.enum ? '' : typeOf(document, schema),
    limits,
    schema.type === 'array' ? 'blanks between them' : '',
    parameter.in === 'query' ? '' : `in the ${parameter.in === 'path' ? 'path' : 'headers'}`,
  ].filter(Boolean).join(', ')
  return [parameter.description, words && el('span', { class: 'line mono', text: words })]
}

function bodyEditor(bodies, changed) {
  const kinds = el('select', {}, bodies.map(each => el('option', { value: each.mediaType, text: each.mediaType })))
  const examples = el('select')
  const text = el('textarea', { rows: 12, spellcheck: 'false', autocomplete: 'off' })
  const current = () => bodies.find(each => each.mediaType === kinds.value)
  const fill = () => {
    text.value = shownValue(current().examples[Number(examples.value)].value)
    changed()
  }
  const list = () => {
    examples.replaceChildren(...current().examples.map((each, index) => el('option', { value: index, text: each.name })))
    fill()
  }
  kinds.addEventListener('change', list)
  examples.addEventListener('change', fill)
  const element = el('div', { class: 'stack' },
    el('div', { class: 'toolbar' }, field('Body as', kinds), field('Example', examples)),
    field('Body', text, bodies.some(each => each.mediaType === MSGPACK) ? 'MessagePack is written here as the JSON that it stands for.' : undefined))
  queueMicrotask(list) // what it changes is not there yet
  return { element, text: () => text.value, mediaType: () => kinds.value }
}

/** What somebody must type before something is deleted or taken back: the ids that it is about. */
function wordToType(operation, typed, body) {
  let named = []
  try {
    const { user_id: user, strategy_id: strategy } = JSON.parse(body ?? '{}') ?? {}
    named = [user, strategy]
  } catch { /* then the server refuses it */ }
  const ids = [...operation.parameters.filter(each => each.in === 'path').map(each => typed[placeOf(each)]), ...named]
  return ids.filter(each => each !== undefined && each !== null && each !== '').join(' ') || operation.id
}

function confirmForm(operation, word, confirm, cancel) {
  const input = el('input', { type: 'text', autocomplete: 'off', spellcheck: 'false' })
  const go = el('button', { type: 'submit', class: 'danger', disabled: true }, operation.summary)
  input.addEventListener('input', () => { go.disabled = input.value.trim() !== word })
  return el('form', { class: 'notice warn', on: { submit: event => { event.preventDefault(); if (!go.disabled) confirm() } } },
    el('p', { class: 'notice-title', text: 'This cannot be taken back' }),
    el('p', { text: operation.description }),
    el('div', { class: 'toolbar' }, field(`Type ${word} to go on`, input), go, el('button', { type: 'button', on: { click: cancel } }, 'Leave it')))
}

// ---- the answer

async function show(document, operation, request, signal, answer, context) {
  const started = performance.now()
  const isPacked = request.headers['Content-Type'] === MSGPACK
  const response = await call(operation, {
    ...request,
    body: isPacked ? packed(request.body) : request.body,
    signal: operation.isStream ? AbortSignal.any([signal, AbortSignal.timeout(STREAM_MS)]) : signal,
  }, context)
  const milliseconds = Math.round(performance.now() - started)
  const head = [answerHead(operation, response, `${milliseconds} ms`), headersView(response)]
  context.announce(`${operation.method} ${operation.path}: ${response.status}`)
  if (operation.isStream && response.ok) return showStream(response, head, answer)
  const text = await response.text()
  answer.replaceChildren(...head, text ? bodyView(response, text) : el('p', { class: 'muted', text: 'No body.' }))
}

/** With the key where one is asked for, and never to another origin than ours. */
async function call(operation, { method, url, headers, body, signal }, context) {
  const init = { method, headers: operation.isStream ? { Accept: 'text/event-stream', ...headers } : headers, body, signal }
  if (needsKey(operation, context)) return context.api.fetch(url, init)
  try {
    return await fetch(url, { ...init, credentials: 'omit', cache: 'no-store' })
  } catch (error) {
    if (error.name === 'AbortError' || error.name === 'TimeoutError') throw error
    throw new Problem({ title: 'No answer', detail: 'The server did not answer, or the browser does not let this page read its answer.' })
  }
}

function packed(text) {
  try {
    return pack(JSON.parse(text))
  } catch (error) {
    throw new Problem({ code: 'not_sent', title: 'The body cannot be packed', detail: `It is no JSON that MessagePack can hold: ${error.message}` })
  }
}

function answerHead(operation, response, time) {
  const said = operation.answers.find(each => each.status === String(response.status))
  return el('div', { class: 'toolbar middle' },
    badge(`${response.status} ${response.statusText}`, response.ok || response.status === 304 ? 'good' : response.status < 500 ? 'warn' : 'bad'),
    el('span', { class: 'muted', text: time }), said && el('span', { class: 'muted', text: said.description }))
}

function headersView(response) {
  const lines = [...response.headers].map(([name, value]) => `${name}: ${value}`).join('\n')
  return lazy([`Headers (${[...response.headers].length})`], () => code(lines))
}

function bodyView(response, text) {
  const isJson = (response.headers.get('Content-Type') ?? '').match(/[/+]json/)
  let shown = text
  if (isJson) {
    try {
      shown = JSON.stringify(JSON.parse(text), null, 2)
    } catch { /* as it came, then */ }
  }
  const rest = shown.length - MOST_SHOWN
  return el('div', { class: 'stack' }, bounded(code(shown.slice(0, MOST_SHOWN))),
    rest > 0 && el('p', { class: 'muted', text: `${bytes(rest)} more are not shown.` }))
}

function bounded(element) {
  element.classList.add('bounded')
  return element
}

async function showStream(response, head, answer) {
  const text = el('code')
  const log = el('pre', { tabindex: '0', 'aria-label': 'The stream as it arrives' }, text)
  const said = el('p', { class: 'muted', text: 'Open. What arrives stands here.' })
  answer.replaceChildren(...head, said, el('div', { class: 'code bounded' }, log))
  let shown = ''
  let why = 'The server has ended the stream.'
  try {
    for await (const piece of textOf(response)) {
      shown = newest(shown + piece)
      text.textContent = shown
      log.scrollTop = log.scrollHeight
    }
  } catch (error) {
    if (error.name !== 'AbortError' && error.name !== 'TimeoutError') why = 'The connection was lost.'
    else why = error.name === 'AbortError' ? 'Stopped.' : 'Stopped after ten minutes: open it again.'
  }
  said.textContent = why
}

/** The end of a text that is too long, from the start of an event on. */
function newest(text) {
  if (text.length <= MOST_STREAM_SHOWN) return text
  const end = text.slice(-MOST_STREAM_SHOWN)
  return end.slice(end.indexOf('\n\n') + 2)
}
