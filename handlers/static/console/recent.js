// What was looked at last, so that one page goes on where another was left. In memory, like everything here.

export const recent = { user_id: '', strategy_id: '' }

/** Users that are connected now, the slowest first: to choose from. */
export async function connectedUsers(api, signal) {
  const { slowest } = await api.get('/internal/connections', {}, { signal })
  return [...new Set(slowest.map(each => each.user_id))]
}
