// Elements, numbers and times for every page. No state.

/** An element. `properties`: `class`, `text`, `on` ({event: listener}), `data` ({name: value}); true and false set and
 * leave out an attribute; anything else is an attribute. Children: nodes, strings, arrays of them; null and false are
 * left out. There is no way to give it HTML, so nothing that a server or a user wrote is ever read as such. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties ?? {})) set(element, name, value)
  element.append(...nodes(children))
  return element
}

/** The same in the SVG namespace. */
export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, value] of Object.entries(properties)) set(element, name, value)
  element.append(...nodes(children))
  return element
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return
  if (name === 'text') element.textContent = value
  else if (name === 'class') element.setAttribute('class', value)
  else if (name === 'on') for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener)
  else if (name === 'data') Object.assign(element.dataset, value)
  else element.setAttribute(name, value === true ? '' : value)
}

const nodes = children =>
  children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false)

let fields = 0

/** A labelled control: `field('User', el('input', {...}), 'a hint')`. Gives the control an id when it has none. */
export function field(label, control, hint) {
  control.id ||= `field-${++fields}`
  const hintId = `${control.id}-hint`
  if (hint) control.setAttribute('aria-describedby', hintId)
  return el('div', { class: 'field' },
    el('label', { for: control.id, text: label }), control, hint && el('p', { class: 'hint', id: hintId }, hint))
}

/** A figure with its name. `answer.set(text, state)` changes it; `state`: 'good', 'warn', 'bad' or nothing. */
export function stat(label, note = '') {
  const value = el('dd', { class: 'stat-value', text: '–' })
  const small = el('dd', { class: 'stat-note', text: note })
  const element = el('div', { class: 'stat' }, el('dt', { class: 'stat-label', text: label }), value, small)
  return {
    element,
    set(text, state = '', noteText) {
      if (value.textContent !== text) value.textContent = text
      element.dataset.state = state
      if (noteText !== undefined && small.textContent !== noteText) small.textContent = noteText
    },
  }
}

/** A table in a container that scrolls by itself. `columns`: [{label, number, key?}], `rows`: arrays of cells (text or
 * nodes). A caption is required: it names the table for who cannot see it. */
export function table(caption, columns, rows, { visibleCaption = false } = {}) {
  const body = el('tbody')
  const element = el('div', { class: 'scroller', tabindex: '0', role: 'region', 'aria-label': caption },
    el('table', { class: 'data' },
      el('caption', { class: visibleCaption ? '' : 'visually-hidden', text: caption }),
      el('thead', {}, el('tr', {}, columns.map(column =>
        el('th', { scope: 'col', class: column.number ? 'number' : '' }, column.label)))),
      body))
  element.setRows = next => body.replaceChildren(...next.map(cells => el('tr', {}, cells.map((cell, index) =>
    el('td', { class: columns[index].number ? 'number' : '' }, cell)))))
  element.setRows(rows)
  return element
}

/** What stands where there is nothing yet: a sentence and the next step. */
export function empty(title, ...children) {
  return el('div', { class: 'empty' }, el('p', { class: 'empty-title', text: title }), ...children)
}

/** Text to paste, with a button that copies it. */
export function code(text, label = 'Copy') {
  const button = el('button', {
    type: 'button',
    class: 'copy',
    on: {
      async click() {
        try {
          await navigator.clipboard.writeText(text)
          button.textContent = 'Copied'
        } catch {
          button.textContent = 'Select and copy'
        }
        setTimeout(() => { button.textContent = label }, 1500)
      },
    },
  }, label)
  return el('div', { class: 'code' }, el('pre', { tabindex: '0', 'aria-label': 'To paste' }, el('code', { text })), button)
}

export const badge = (text, state = '') => el('span', { class: `badge ${state}`, text })

// ---- numbers and times

const whole = new Intl.NumberFormat('en-GB', { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat('en-GB', { maximumFractionDigits: 1, minimumFractionDigits: 1 })

/** 12,345 */
export const count = value => (Number.isFinite(value) ? whole.format(value) : '–')

/** 0.4, 12, 1,234: a rate. */
export const rate = value =>
  !Number.isFinite(value) ? '–' : value !== 0 && Math.abs(value) < 10 ? short.format(value) : whole.format(value)

/** 3.2 ms, 1.4 s, 3 min, 2 h */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–'
  if (seconds < 1) return `${seconds === 0 ? '0' : seconds < 0.01 ? (seconds * 1000).toFixed(1) : whole.format(seconds * 1000)} ms`
  if (seconds < 60) return `${seconds < 10 ? short.format(seconds) : whole.format(seconds)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`
  return `${whole.format(Math.floor(seconds / 86400))} d ${Math.floor(seconds / 3600) % 24} h`
}

/** 12.3 MiB */
export function bytes(value) {
  if (!Number.isFinite(value)) return '–'
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10))
  return `${power ? short.format(value / 1024 ** power) : whole.format(value)} ${units[power]}`
}

/** 14:03:22, in the reader's own time zone; with milliseconds when asked for. */
export function clock(moment, milliseconds = false) {
  const date = new Date(moment)
  const text = date.toLocaleTimeString('en-GB')
  return milliseconds ? `${text}.${String(date.getMilliseconds()).padStart(3, '0')}` : text
}
