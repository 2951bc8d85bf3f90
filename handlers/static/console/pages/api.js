import { empty } from '../dom.js'

export const title = 'API'

export function mount(root) {
  root.append(empty('This page is not built yet.'))
}
