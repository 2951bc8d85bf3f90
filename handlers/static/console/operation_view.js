// What an operation takes and answers, to read: descriptions, schemas that open where they name others, examples.
import { badge, code, el } from './dom.js'
import { fieldsOf, limitsOf, namedIn, resolve, typeOf } from './openapi_document.js'

const STATES = { GET: 'info', POST: 'good', DELETE: 'bad' }

/** The method, as a badge. */
export const methodBadge = method => {
  const element = badge(method, STATES[method] ?? '')
  element.classList.add('method')
  return element
}

/** Who may call an operation, in a few words. */
export function whoMayCall(operation) {
  if (operation.role) return `role ${operation.role}`
  return operation.schemes.length ? 'readers' : 'open'
}

/** Everything that an operation answers, by status. */
export function answersView(document, operation) {
  return el('div', { class: 'answers' }, operation.answers.map(answer => lazy(
    [el('span', { class: `mono ${answer.status < 300 ? 'answer-good' : ''}`, text: answer.status }), ` ${answer.description}`],
    () => [
      answer.headers.length > 0 && el('p', { class: 'hint' }, 'Headers: ',
        answer.headers.map(([name, says], index) => [index ? ' ' : '', el('code', { text: name }), ` ${says}`])),
      answer.contents.map(content => contentView(document, content)),
      answer.contents.length === 0 && el('p', { class: 'muted', text: 'No body.' }),
    ])))
}

/** A body: its media type, its schema, its events, its examples. `isAsked`: it is the caller's to write. */
export function contentView(document, content, isAsked = false) {
  const required = isAsked ? 'needed' : 'always there'
  return el('div', { class: 'stack' },
    el('p', { class: 'label mono', text: content.mediaType }),
    content.events
      ? content.events.map(each => lazy([el('code', { text: each.event }), ` ${each.description}`], () => [
        el('p', { class: 'label', text: 'shape=envelope' }), schemaView(document, each.envelope, required),
        el('p', { class: 'label', text: 'shape=flat' }), schemaView(document, each.flat, required),
      ]))
      : schemaView(document, content.lineSchema ?? content.schema, required, content.lineSchema && 'Each line: '),
    content.examples.map(example => lazy([`Example: ${example.name}`], () => code(shownValue(example.value)))))
}

export const shownValue = value => (typeof value === 'string' ? value : JSON.stringify(value, null, 2))

function schemaView(document, schema, required, before = '') {
  const node = resolve(document, schema)
  const fields = fieldsOf(document, schema)
  return el('div', { class: 'schema' },
    el('p', {}, before, el('code', { text: typeOf(document, schema) }), schema !== node && node.description ? ` ${node.description}` : ''),
    fields.length
      ? el('dl', { class: 'schema-fields' }, fields.map(field => fieldView(document, field, required)))
      : namedViews(document, schema, required))
}

function fieldView(document, { name, schema, isRequired }, required) {
  const limits = limitsOf(schema)
  return [
    el('dt', {}, el('code', { text: name }), ' ', el('span', { class: 'muted', text: typeOf(document, schema) }), isRequired && ' ', isRequired && badge(required)),
    el('dd', {}, schema.description && el('p', { text: schema.description }), limits && el('p', { class: 'hint', text: limits }), namedViews(document, schema, required)),
  ]
}

/** Schemas may contain themselves, so each is drawn when it is opened. */
function namedViews(document, schema, required) {
  return namedIn(schema).map(name => lazy([el('code', { text: name })], () =>
    schemaView(document, { $ref: `#/components/schemas/${name}` }, required)))
}

/** A <details> that is filled when it is first opened. */
export function lazy(summary, fill) {
  const element = el('details', {}, el('summary', {}, summary))
  element.addEventListener('toggle', () => element.append(el('div', { class: 'stack inset' }, fill())), { once: true })
  return element
}
