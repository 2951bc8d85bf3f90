// The console's frame: navigation, routes behind the hash, the theme, the key dialog. What a page needs to know:
//
// A page is `pages/<name>.js`, reached as `#/<name>?parameter=value`, listed in PAGES below. It exports
//
//   export const title = 'Look-up'
//   export function mount(root, context) { …; return () => { … } }      // the function returned unmounts; may be absent
//
// `root` is an empty <div> under the page's heading (<h1>, made by the shell, which moves the focus there). `mount` is
// synchronous: draw at once, fetch afterwards. It is called anew whenever the page or its parameters change, except by
// `setParameters`. An exception in it, or in what it returns when that is a promise, is shown as a notice.
//
//   context.api          see api.js: `await api.get(path, {name: value})`, `api.request(method, path, {parameters, body,
//                        headers, signal})` answer the decoded JSON or text, throw Problem (code, status, detail, errors,
//                        title, retry, requestId). `api.fetch(path, init)` answers the Response whatever its status. All
//                        add the key and ask for one when it is missing or wrong.
//   context.parameters   URLSearchParams of the hash
//   context.navigate(name, parameters)   go to a page
//   context.setParameters(parameters)    write the page's own state into the hash, without mounting again
//   context.config       {version, internal_auth, console_emit} of console/config.json (console_emit: true or false)
//   context.signal       AbortSignal, aborted when the page is left: give it to api calls and addEventListener
//   context.announce(text)               say it to screen readers
//   context.poll(ms, run)                run() now and every `ms`, never twice at once, not while the tab is hidden, until
//                        the page is left; answers {now()}: run at once. `run` gets an AbortSignal; it times out by itself
//   context.problem(error)               an element (.notice) that says what went wrong and what to do; AbortError: null
//   context.actions      a <div> right of the heading, for the page's own buttons
//
// Elements are made with dom.js (el, field, stat, table, empty, code, badge, count, rate, duration, bytes, clock): never
// markup in a string. No style attributes (the Content-Security-Policy drops them); element.style in scripts is allowed.
// CSS: console.css, its head comment lists the classes. Charts: charts.js.
import { api, askWith, setAsksForKey } from './api.js'
import { el } from './dom.js'

const PAGES = [
  { name: 'overview', label: 'Overview', group: 'Watch' },
  { name: 'stream', label: 'Stream', group: 'Watch' },
  { name: 'hours', label: 'Hours', group: 'Watch' },
  { name: 'connections', label: 'Connections', group: 'Watch' },
  { name: 'lookup', label: 'Look-up', group: 'Ask' },
  { name: 'emit', label: 'Test batch', group: 'Try', shown: config => config.console_emit },
  { name: 'api', label: 'API', group: 'Try' },
]
const FIRST = 'overview'
const POLL_TIMEOUT_MS = 10_000

const byId = id => document.getElementById(id)
const main = byId('main')

let config = { version: '', internal_auth: 'none', console_emit: false }
let leave = () => {}
let visit = 0

// ---- routes

function route() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?')
  return { name: path || FIRST, parameters: new URLSearchParams(query) }
}

const hashOf = (name, parameters = {}) => {
  const query = new URLSearchParams(parameters).toString()
  return `#/${name}${query ? `?${query}` : ''}`
}

async function show(isFirst = false) {
  if (!isFirst && location.hash === '#main') return // the skip link
  const mine = ++visit
  leave()
  leave = () => {}
  const { name, parameters } = route()
  markCurrent(name)
  const known = PAGES.find(page => page.name === name)
  const actions = el('div', { class: 'toolbar actions' })
  const heading = el('h1', { tabindex: '-1', text: known?.label ?? 'Not found' })
  const root = el('div', { class: 'page' })
  main.replaceChildren(el('div', { class: 'page-head' }, heading, actions), root)
  document.title = `${known?.label ?? 'Not found'} · Tallywire`
  if (!isFirst) heading.focus({ preventScroll: true })
  main.scrollTo?.(0, 0)
  if (!known) {
    root.append(el('p', { class: 'notice', text: 'There is no such page. Choose one from the navigation.' }))
    return
  }
  const leaving = new AbortController()
  try {
    const page = await import(`./pages/${name}.js`)
    if (mine !== visit) return
    heading.textContent = page.title
    document.title = `${page.title} · Tallywire`
    const unmount = page.mount(root, contextOf(name, parameters, actions, leaving.signal, root))
    leave = () => {
      leaving.abort()
      if (typeof unmount === 'function') unmount()
    }
    if (unmount instanceof Promise) unmount.catch(error => fail(root, error))
  } catch (error) {
    leave = () => leaving.abort()
    if (mine === visit) fail(root, error)
  }
}

function fail(root, error) {
  const notice = problem(error)
  if (notice === null) return
  if (error.name !== 'Problem') console.error(error)
  root.prepend(notice)
}

function contextOf(name, parameters, actions, signal, root) {
  return {
    api,
    config,
    parameters,
    actions,
    signal,
    problem,
    announce: text => { byId('announcer').textContent = text },
    navigate: (to, given) => { location.hash = hashOf(to, given) },
    setParameters: given => history.replaceState(null, '', hashOf(name, given)),
    poll: (ms, run) => poll(ms, run, signal, error => fail(root, error)),
  }
}

// ---- what pages get

function poll(ms, run, left, report) {
  let timer = null
  let running = false
  const turn = async () => {
    clearTimeout(timer)
    timer = null
    if (left.aborted || running || document.hidden) return
    running = true
    const started = performance.now()
    try {
      await run(AbortSignal.any([left, AbortSignal.timeout(POLL_TIMEOUT_MS)]))
    } catch (error) {
      if (!left.aborted) report(error)
    }
    running = false
    // From start to start, unless the server takes longer than that.
    if (!left.aborted) timer = setTimeout(turn, Math.max(ms / 4, ms - (performance.now() - started)))
  }
  document.addEventListener('visibilitychange', turn, { signal: left })
  left.addEventListener('abort', () => clearTimeout(timer))
  turn()
  return { now: turn }
}

function problem(error) {
  if (error.name === 'AbortError') return null
  if (error.name === 'TimeoutError') error = { title: 'The server takes too long', detail: 'It did not answer in time.' }
  const { title, detail, message, code, errors = [], requestId } = error
  return el('div', { class: 'notice bad', role: 'alert' },
    el('p', { class: 'notice-title', text: title || 'Something went wrong' }),
    (detail || message) && el('p', { text: detail || message }),
    errors.length > 0 && el('ul', {}, errors.map(each => el('li', {}, el('code', { text: each.path }), ` ${each.message}`))),
    code === 'key_needed' && el('button', { type: 'button', on: { click: async () => { await api.enterKey(); if (api.hasKey) show() } } }, 'Enter a key'),
    (code || requestId) && el('p', { class: 'notice-small' }, [code, requestId && `request ${requestId}`].filter(Boolean).join(' · ')))
}

// ---- navigation

function drawNavigation() {
  const groups = new Map()
  for (const page of PAGES) {
    if (page.shown && !page.shown(config)) continue
    if (!groups.has(page.group)) groups.set(page.group, [])
    groups.get(page.group).push(page)
  }
  byId('navigation').replaceChildren(...[...groups].map(([group, pages]) => {
    const id = `navigation-${group.toLowerCase()}`
    return el('div', { class: 'nav-group' },
      el('p', { class: 'nav-title', id, text: group }),
      el('ul', { 'aria-labelledby': id }, pages.map(page =>
        el('li', {}, el('a', { href: `#/${page.name}`, data: { page: page.name }, text: page.label })))))
  }))
  markCurrent(route().name)
}

function markCurrent(name) {
  for (const link of byId('navigation').querySelectorAll('a')) {
    if (link.dataset.page === name) {
      link.setAttribute('aria-current', 'page')
      link.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    } else link.removeAttribute('aria-current')
  }
}

// ---- theme

const THEMES = ['system', 'light', 'dark']
const theme = () => document.documentElement.dataset.theme ?? 'system'

function drawTheme() {
  byId('theme-button').textContent = `Theme: ${theme()}`
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]
  if (next === 'system') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = next
  try {
    localStorage.setItem('tallywire.theme', next)
  } catch { /* it holds until the page is closed */ }
  drawTheme()
  window.dispatchEvent(new Event('themechange'))
}

// ---- the key

const dialog = byId('key-dialog')
const input = byId('key-input')

function askForKey(problemText) {
  byId('key-problem').hidden = !problemText
  byId('key-problem').textContent = problemText
  return new Promise(resolve => {
    let given = null
    const accept = event => {
      event.preventDefault()
      given = input.value.trim() || null
      dialog.close()
    }
    byId('key-form').addEventListener('submit', accept)
    dialog.addEventListener('close', () => {
      byId('key-form').removeEventListener('submit', accept)
      input.value = ''
      resolve(given)
    }, { once: true })
    dialog.showModal()
    input.focus()
  })
}

function drawKey() {
  const button = byId('key-button')
  button.hidden = config.internal_auth === 'none' && !api.hasKey
  button.textContent = api.hasKey ? 'Forget the key' : 'Enter a key'
}

byId('key-cancel').addEventListener('click', () => dialog.close())
byId('key-button').addEventListener('click', async () => {
  if (api.hasKey) api.forgetKey()
  else await api.enterKey()
  show(true)
})
byId('theme-button').addEventListener('click', nextTheme)
askWith(askForKey, drawKey)

// ---- start

async function start() {
  drawTheme()
  try {
    config = await (await fetch('config.json')).json()
  } catch { /* the page will say that the server does not answer */ }
  setAsksForKey(config.internal_auth === 'keys')
  byId('version').textContent = config.version
  drawNavigation()
  drawKey()
  window.addEventListener('hashchange', () => show())
  await show(true)
}

document.querySelector('.skip-link').addEventListener('click', event => {
  event.preventDefault()
  main.focus()
})

start()
