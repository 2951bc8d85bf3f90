// The OpenAPI document of this server, to read and to try.
import { Problem } from '../api.js'
import { badge, el, empty, field } from '../dom.js'
import { matches, operationsOf } from '../openapi_document.js'
import { trialOf } from '../operation_trial.js'
import { answersView, contentView, lazy, methodBadge, whoMayCall } from '../operation_view.js'

export const title = 'API'

const DOCUMENT = '/openapi.json'
const GROUPS = [
  { name: 'Emit', about: 'Internal listener, keys with the role emit.', has: each => each.role === 'emit' },
  { name: 'Read', about: 'Internal listener, keys with the role read.', has: each => each.role === 'read' },
  { name: 'Administer', about: 'Internal listener, keys with the role admin.', has: each => each.role === 'admin' },
  { name: 'Open', about: 'Internal listener, nobody is asked for a key.', has: each => each.listeners.includes('internal') && !each.role },
  { name: 'Public', about: 'Public listener: what browsers reach.', has: each => !each.listeners.includes('internal') },
]

export function mount(root, context) {
  const groups = el('div', { class: 'stack' }, el('p', { class: 'muted', text: 'Reading the document…' }))
  root.append(groups)
  return load(context).then(document => draw(groups, document, context), error => {
    const notice = context.problem(error)
    groups.replaceChildren(...[notice].filter(Boolean))
  }).then(() => undefined)
}

/** Open to everybody, so no key is asked for. */
async function load(context) {
  const response = await fetch(DOCUMENT, { signal: context.signal }).catch(error => {
    if (error.name === 'AbortError') throw error
    throw new Problem({ title: 'The server does not answer', detail: 'It may be stopped, or restarting.' })
  })
  if (!response.ok) throw new Problem({ status: response.status, code: '', title: 'The document cannot be read', detail: `${DOCUMENT} was answered ${response.status}.` })
  return response.json()
}

function draw(groups, document, context) {
  const operations = operationsOf(document)
  const search = el('input', { type: 'search', value: context.parameters.get('search') ?? '', placeholder: 'batches, DELETE, admin, idempotency…', autocomplete: 'off' })
  const found = el('p', { class: 'muted', role: 'status' })
  const items = operations.map(operation => ({ operation, element: operationView(document, operation, context) }))
  const sections = GROUPS.map(group => {
    const members = items.filter(({ operation }) => GROUPS.find(each => each.has(operation)) === group)
    const element = el('section', { class: 'card' },
      el('div', { class: 'card-head' }, el('h2', { text: group.name }), el('p', { class: 'muted', text: group.about })),
      el('div', { class: 'operations' }, members.map(each => each.element)))
    return { element, members }
  })
  const nothing = empty('No operation has these words', el('p', { text: 'Fewer or shorter ones find more.' }))
  const filter = () => {
    let visible = 0
    for (const { element, members } of sections) {
      for (const each of members) each.element.hidden = !matches(each.operation, search.value.trim())
      const left = members.filter(each => !each.element.hidden).length
      element.hidden = left === 0
      visible += left
    }
    nothing.hidden = visible > 0
    found.textContent = `${visible} of ${operations.length} operations`
  }
  search.addEventListener('input', filter)
  filter()
  groups.replaceChildren(
    el('section', { class: 'card' },
      about(document),
      el('div', { class: 'toolbar' }, el('div', { class: 'field grow', role: 'search' }, field('Search', search)), found)),
    ...sections.map(each => each.element), nothing)
  const named = items.find(({ operation }) => operation.id === context.parameters.get('operation'))
  if (named) {
    named.element.open = true
    named.element.scrollIntoView({ block: 'start' })
  }
}

function about(document) {
  const paragraphs = document.info.description.split('\n\n')
  return el('div', { class: 'stack' },
    el('p', {}, paragraphs[0]),
    lazy(['What every answer has in common'], () => paragraphs.slice(1).map(text => el('p', { text }))),
    el('p', { class: 'hint' }, `${document.info.title} ${document.info.version}, OpenAPI ${document.openapi}: `,
      el('a', { href: DOCUMENT, download: 'openapi.json', text: 'the document itself' })))
}

function operationView(document, operation, context) {
  const element = lazy(el('span', { class: 'operation-head' },
    methodBadge(operation.method), el('span', { class: 'mono path', text: operation.path }),
    el('span', { class: 'muted', text: operation.summary }), badge(whoMayCall(operation)),
  ), () => [
    operation.description && el('p', { text: operation.description }),
    el('h3', { text: 'Try it' }), trialOf(document, operation, placeOf(document, operation, context), context),
    operation.bodies.length > 0 && [el('h3', { text: 'Body' }), operation.bodies.map(each => contentView(document, each, true))],
    el('h3', { text: 'Answers' }), answersView(document, operation),
  ])
  element.classList.add('operation')
  element.dataset.operation = operation.id
  element.addEventListener('toggle', () => { if (element.open) context.setParameters({ operation: operation.id }) })
  return element
}

/** Where an operation is, and whether this page may call it there. */
function placeOf(document, operation, context) {
  if (operation.listeners.includes('internal')) return { base: location.origin, canTry: true }
  const base = context.config.public_url
  if (!base) {
    const { address } = document.servers.find(each => each.url.includes('{address}')).variables
    return {
      base: `http://${address.default}`,
      canTry: false,
      why: 'This route is on the public listener, whose answers a page from here may not read: that is for browsers of readers, with a token of their own. Try it in a shell, with the address that the listener has for you.',
    }
  }
  if (operation.method === 'OPTIONS') {
    return { base, canTry: false, why: 'Browsers send pre-flights by themselves, and let no page send one to another origin. Try it in a shell.' }
  }
  return { base, canTry: true }
}
