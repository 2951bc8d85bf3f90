// Reads an OpenAPI 3.1 document: which operations there are, what they take and answer, and how a
// call of one is written. Pure.

const METHODS = ['get', 'head', 'post', 'put', 'patch', 'delete', 'options']
const KEY_SCHEME = 'internalKey'

/** What a reference stands for; anything else is itself. */
export function resolve(document, node) {
  let found = node
  for (let steps = 0; found?.$ref && steps < 20; steps++) {
    found = found.$ref.slice(2).split('/').reduce((at, step) => at?.[step.replaceAll('~1', '/').replaceAll('~0', '~')], document)
  }
  return found ?? {}
}

/** The last part of a reference: the name of a schema; '' for what is no reference. */
export const nameOf = node => node?.$ref?.split('/').at(-1) ?? ''

/** Every operation, in the order of the document:
 * {id, method, path, summary, description, listeners, role, schemes, parameters, bodies, answers, isStream, isDestructive}.
 * `role` is '' where a key needs none, `schemes` are empty where nobody is asked. */
export function operationsOf(document) {
  return Object.entries(document.paths).flatMap(([path, item]) =>
    METHODS.filter(method => item[method]).map(method => operationOf(document, path, item, method)))
}

function operationOf(document, path, item, method) {
  const node = item[method]
  const schemes = (node.security ?? []).flatMap(Object.keys)
  const role = (node.security ?? []).map(each => each[KEY_SCHEME]?.[0]).find(Boolean) ?? ''
  const answers = Object.entries(node.responses).map(([status, answer]) => answerOf(document, status, answer))
  return {
    id: node.operationId,
    method: method.toUpperCase(),
    path,
    summary: node.summary ?? '',
    description: node.description ?? '',
    listeners: node['x-listener'] ?? item['x-listener'] ?? [],
    role,
    schemes,
    // Those of the operation first: what every route takes is the least interesting.
    parameters: [...(node.parameters ?? []), ...(item.parameters ?? [])].map(each => resolve(document, each)),
    bodies: contentsOf(document, resolve(document, node.requestBody).content),
    answers,
    isStream: answers.some(answer => answer.contents.some(content => content.events)),
    isDestructive: role === 'admin',
  }
}

function answerOf(document, status, node) {
  const answer = resolve(document, node)
  return {
    status,
    description: answer.description ?? '',
    headers: Object.entries(answer.headers ?? {}).map(([name, header]) => [name, resolve(document, header).description ?? '']),
    contents: contentsOf(document, answer.content),
  }
}

function contentsOf(document, content = {}) {
  return Object.entries(content).map(([mediaType, node]) => ({
    mediaType,
    schema: node.schema ?? {},
    lineSchema: node['x-line-schema'],
    examples: Object.entries(node.examples ?? {}).map(([name, each]) => ({ name: each.summary ?? name, value: each.value })),
    events: node['x-events'] && Object.entries(node['x-events']).map(([event, each]) => ({ event, ...each })),
  }))
}

/** Whether an operation has all these words in its method, path, name, summary, description or role. */
export function matches(operation, text) {
  const heap = [operation.method, operation.path, operation.id, operation.summary, operation.description, operation.role,
    ...operation.listeners, ...operation.parameters.map(each => each.name)].join(' ').toLowerCase()
  return text.toLowerCase().split(/\s+/).every(word => heap.includes(word))
}

// ---- schemas

/** A schema in a few words: `integer`, `list of Summary`, `"envelope" or "flat"`, `Accepted, Skipped or null`. */
export function typeOf(document, schema) {
  if (schema.$ref) return nameOf(schema)
  if ('const' in schema) return JSON.stringify(schema.const)
  if (schema.enum) return either(schema.enum.map(each => JSON.stringify(each)))
  if (schema.anyOf) return either(listsLast(schema.anyOf).map(each => typeOf(document, each)))
  if (schema.allOf) return either(schema.allOf.map(each => typeOf(document, each)))
  if (schema.type === 'array') return `list of ${typeOf(document, schema.items ?? {})}`
  if (schema.type === 'object' && schema.additionalProperties?.type) return `object of ${schema.additionalProperties.type}`
  if (Array.isArray(schema.type)) return either(schema.type)
  return schema.format === 'date-time' ? 'time' : schema.type ?? 'anything'
}

/** `Batch or list of Batch`: the other way round it would be a list of both. */
const listsLast = schemas => [...schemas.filter(each => each.type !== 'array'), ...schemas.filter(each => each.type === 'array')]

const either = words => (words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} or ${words.at(-1)}`)

/** What a value must keep to beside its type, in words; '' where there is nothing. */
export function limitsOf(schema) {
  const said = []
  if ('minimum' in schema && 'maximum' in schema) said.push(`${schema.minimum} to ${most(schema.maximum)}`)
  else if ('minimum' in schema) said.push(`${schema.minimum} or more`)
  else if ('maximum' in schema) said.push(`${most(schema.maximum)} at most`)
  if ('maxItems' in schema) said.push(`${schema.maxItems} at most`)
  if (schema.pattern) said.push(`of the form ${schema.pattern}`)
  if ('default' in schema && schema.default !== null) said.push(`${JSON.stringify(schema.default)} when absent`)
  return said.join(', ')
}

const most = value => (value === Number.MAX_SAFE_INTEGER ? '2^53 - 1' : String(value))

/** The fields of an object: [{name, schema, isRequired}]; none for anything else. `allOf` is taken together. */
export function fieldsOf(document, schema) {
  const node = resolve(document, schema)
  const parts = [...(node.allOf ?? []).map(each => resolve(document, each)), node]
  const properties = {}
  for (const part of parts) {
    for (const [name, each] of Object.entries(part.properties ?? {})) properties[name] = { ...properties[name], ...each }
  }
  const required = parts.flatMap(part => part.required ?? [])
  return Object.entries(properties).map(([name, each]) => ({ name, schema: each, isRequired: required.includes(name) }))
}

/** The named schemas that a schema speaks of directly, in order. */
export function namedIn(schema, found = []) {
  if (!schema || typeof schema !== 'object') return found
  if (schema.$ref) {
    if (!found.includes(nameOf(schema))) found.push(nameOf(schema))
    return found
  }
  for (const each of [schema.items, schema.additionalProperties, ...(schema.anyOf ?? []), ...(schema.allOf ?? [])]) {
    namedIn(each, found)
  }
  return found
}

// ---- requests

/** A value of a parameter, as it was typed, as the values to send: a list is separated by commas or blanks. */
export function valuesOf(parameter, text) {
  if (parameter.schema.type === 'array') return text.split(/[\s,]+/).filter(Boolean)
  return text === '' ? [] : [text]
}

/** `{target, headers}` of a request: path and query, and headers by name. `typed`: the text of each parameter by place
 * and name, `query user_id`. */
export function requestOf(operation, typed) {
  const headers = {}
  const pairs = []
  let target = operation.path
  for (const parameter of operation.parameters) {
    const values = valuesOf(parameter, typed[placeOf(parameter)] ?? '')
    if (parameter.in === 'path') target = target.replace(`{${parameter.name}}`, encodeURIComponent(values[0] ?? ''))
    else if (parameter.in === 'header' && values.length) headers[parameter.name] = values[0]
    else if (parameter.in === 'query') pairs.push(...values.map(value => [parameter.name, value]))
  }
  // As a person writes it: an asterisk and a colon may stand in a query.
  const query = new URLSearchParams(pairs).toString().replaceAll('%3A', ':')
  return { target: query ? `${target}?${query}` : target, headers }
}

export const placeOf = parameter => `${parameter.in} ${parameter.name}`

/** The parameters that must be there and are not, by name. */
export const missingIn = (operation, typed) =>
  operation.parameters.filter(each => each.required && valuesOf(each, typed[placeOf(each)] ?? '').length === 0)
    .map(each => each.name)

/** The same request for a shell. With `asksForKey` it takes a key from the variable KEY: a key itself never stands
 * there. A body that is no text is taken from a file. */
export function curl({ method, url, headers = {}, body, bodyFile, asksForKey = false, isStream = false }) {
  const needsMethod = !['GET', 'HEAD'].includes(method) && !(method === 'POST' && (body ?? bodyFile) !== undefined)
  const options = [method === 'HEAD' && '--head', isStream && '-N', needsMethod && `-X ${method}`].filter(Boolean)
  const parts = [['curl', ...options, quoted(url)].join(' ')]
  if (asksForKey) parts.push('-H "Authorization: Bearer $KEY"')
  for (const [name, value] of Object.entries(headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`)
  if (bodyFile) parts.push(`--data-binary @${bodyFile}`)
  else if (body !== undefined) parts.push(`${body.includes('\n') ? '--data-binary' : '-d'} ${quoted(body)}`)
  return parts.join(' \\\n  ')
}

const quoted = text => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`)
