import { empty } from '../dom.js'

export const title = 'Look-up'

export function mount(root) {
  root.append(empty('This page is not built yet.'))
}
