// What to paste into a terminal, for the address and the rules of this server.

const BATCH = {
  user_id: 7,
  strategy_id: 3,
  batch_results: [
    { order_type: 'LIMIT', event_type: 'order_created', success: true },
    { order_type: 'STOP_LIMIT', event_type: 'order_cancelled', success: true },
  ],
}

/** A command that emits one batch. The key is for the reader to put in: ours goes nowhere. */
export function curlEmit(config, { user_id = BATCH.user_id, strategy_id = BATCH.strategy_id } = {}) {
  const key = config.internal_auth === 'none' ? '' : " -H 'Authorization: Bearer KEY'"
  const batch = JSON.stringify({ ...BATCH, user_id: Number(user_id), strategy_id: Number(strategy_id) })
  return `curl ${location.origin}/internal/emit -H 'Content-Type: application/json'${key} -d '${batch}'`
}
