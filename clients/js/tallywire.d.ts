/** Counts of one order type. */
export interface Summary {
  readonly order_type: string
  readonly created: number
  readonly cancelled: number
}

/** Sums by strategy. A map never changes once you have it: the next change makes another one. */
export type Totals = ReadonlyMap<number, readonly Summary[]>

/** Sums and the position that they stand at, as JSON: what to keep for the next visit, and to give as `from` then. */
export interface Snapshot {
  /** Tells apart sums that were begun at different places: only those of one base can be subtracted. */
  readonly base: string
  readonly position: string
  readonly strategies: readonly {
    readonly strategy_id: number
    readonly summaries: readonly Summary[]
    readonly batches: number
    readonly timestamp: string | null
  }[]
}

/** Why a token is asked for. With `expiring` and `refused` the one from before will not do any more. */
export type TokenReason = 'connect' | 'expiring' | 'refused'

export interface StreamOptions {
  /** Where the stream is: `https://example.org/stream`, or relative to the page, `/stream`. */
  url: string | URL
  /** The strategies to follow, or `'*'` for every one that may be read, future ones included. */
  strategyIds: readonly number[] | '*'
  /** Whose. Leave it out where the token says it. */
  userId?: number
  /**
   * Count from the beginning of the journal, as the server states it, and compare own sums with what it states at each
   * frame (the default). With `false` sums count from when the stream was opened, and after a `stream_reset` from the
   * beginning of the journal.
   */
  totals?: boolean
  /**
   * Gives the token for each attempt, without `Bearer`. It is sent in a header and never stands in a URL. Nothing
   * (`null`, `undefined`, `''`) means to go without one. If it throws, or takes longer than 30 s, the attempt has failed.
   */
  token?: (reason: TokenReason) => string | null | undefined | Promise<string | null | undefined>
  /**
   * How the token is shown: `'bearer'` (the default) with the stream itself; `'session'` makes it a cookie
   * (`POST <url>/session`), which the stream then sends; `'ticket'` asks for a ticket (`POST <url>/ticket`) for each
   * attempt, so that the request of the stream has no header of its own. Without `token` a session is one that the page
   * has made, and a ticket is asked for with its cookie. Node keeps no cookies, and so has no sessions.
   */
  auth?: 'bearer' | 'session' | 'ticket'
  /** As for `fetch`. Default: `'include'` with `auth: 'session'`, `'omit'` with `'ticket'`, else `'same-origin'`. */
  credentials?: 'omit' | 'same-origin' | 'include'
  /**
   * A name: all tabs of this origin that open the same stream under it share one connection. It must name the user,
   * where several may use one browser: whoever knows the name gets the counts. Without it, and where the browser
   * has no Web Locks or BroadcastChannel, each stream has a connection of its own.
   */
  share?: string
  /** Go on from there: a snapshot of the same user, with the same `totals`. */
  from?: Snapshot | null
  /** Closes the stream when it is aborted. */
  signal?: AbortSignal
  /** A frame that is longer, in characters, ends its connection. Default: 4 MiB. */
  maxFrameLength?: number
  /** Longest wait between two attempts, in milliseconds, unless the server asks for a longer one. Default: 60,000. */
  maxDelayMs?: number
  /** The world outside, for tests. */
  environment?: Partial<Environment>
}

/** `connecting`: a request is under way. `waiting`: until the next one. `closed`: there will be none. */
export type State = 'connecting' | 'open' | 'waiting' | 'closed'

/** `alone`: not shared. `leader`: this tab has the connection. `follower`: another tab has. */
export type Role = 'alone' | 'leader' | 'follower'

export interface StateChange {
  readonly state: State
  readonly role: Role
  /** While waiting: milliseconds to the next attempt. */
  readonly delay_ms?: number
  /** Why the stream waits or is closed, where that was not asked for. */
  readonly error?: StreamError
}

/** RFC 9457, as the server answers. */
export interface Problem {
  readonly type?: string
  readonly title?: string
  readonly status?: number
  readonly detail?: string
  readonly code?: string
  readonly retry?: 'no' | 'later' | 'same key'
  readonly request_id?: string
  readonly errors?: readonly { readonly path: string; readonly message: string }[]
}

/**
 * `network`: no answer, or the connection was cut. `ended`: the response ended. `silent`: nothing came for nearly two
 * heartbeats. `refused`: an answer that is not a stream; see `status` and `problem`. `frame`: a frame that is too long or
 * cannot be read. `gap`: a frame is missing. `token`: the token could not be had. `closing`: the server ended the
 * stream; see `reason`.
 */
export type ErrorKind = 'network' | 'ended' | 'silent' | 'refused' | 'frame' | 'gap' | 'token' | 'closing'

export declare class StreamError extends Error {
  readonly kind: ErrorKind
  /** There will be no further attempt: the stream is closed. */
  readonly final: boolean
  /** Of `refused`. */
  readonly status?: number
  readonly problem?: Problem
  /** Of `closing`. */
  readonly reason?: string
}

/** The data line of an event, and its id where it has one. */
interface Wire<Type extends string, Data> {
  readonly type: Type
  readonly data: Data
  readonly id?: string
}

export interface OrderBatchUpdate {
  readonly type: 'order_batch_update'
  readonly data: {
    readonly summaries: readonly Summary[]
    /** When the last batch in it was accepted. */
    readonly timestamp: string
  }
  readonly stream: {
    readonly strategy_id: number
    /** The position before it. */
    readonly after: string
    /** How many batches it carries. */
    readonly batches: number
    /** Totals of the strategy, where the server states them. */
    readonly totals?: readonly Summary[]
  }
  /** The position behind it. */
  readonly id: string
}

export interface OrderBatchCatchUp {
  readonly type: 'order_batch_catch_up'
  readonly updates: readonly OrderBatchUpdate[]
  readonly after: string
  readonly id: string
}

export interface StrategyTotals {
  readonly strategy_id: number
  readonly summaries: readonly Summary[]
}

/** A block as it came, of known and unknown events. */
export interface Frame {
  readonly event: string
  /** Lines joined; null where the block has no data line, and so is no event. */
  readonly data: string | null
  readonly id: string | null
  readonly retry: number | null
  /** Its lines, comments included. */
  readonly raw: string
}

/**
 * What `on` can be told. Events of the wire come as the server sent them, with `id`.
 *
 * Whoever shows sums needs `totals` only. Whoever reacts to single updates (a list, a sound) takes `order_batch_update`, which
 * is delivered for each strategy of a catch-up, too, and once each, whatever happened on the way.
 */
export interface StreamEvents {
  /** Counts of one strategy, already added to `totals`. */
  order_batch_update: OrderBatchUpdate
  /** Counts of several strategies at once; each of its updates is delivered as `order_batch_update` first. */
  order_batch_catch_up: OrderBatchCatchUp
  stream_open: Wire<'stream_open', {
    readonly position: string
    readonly strategies: readonly number[] | '*'
    readonly resumed: boolean
    readonly heartbeat_seconds: number
    readonly totals?: readonly StrategyTotals[]
  }>
  /** Continuity cannot be shown; `totals` of the stream have been replaced by those it states. */
  stream_reset: Wire<'stream_reset', {
    readonly reason: string
    readonly position: string
    readonly strategies: readonly number[] | '*'
    readonly heartbeat_seconds: number
    readonly totals: readonly StrategyTotals[]
  }>
  stream_heartbeat: Wire<'stream_heartbeat', { readonly position: string; readonly timestamp: string }>
  stream_expiring: Wire<'stream_expiring', { readonly expires_at: string; readonly seconds_left: number }>
  stream_closing: Wire<'stream_closing', { readonly reason: string; readonly reconnect: boolean }>
  /** A notice about the hour that is over: its counts have arrived before. */
  order_hourly_summary: Wire<'order_hourly_summary', {
    readonly strategy_id: number
    readonly hour: string
    readonly summaries: readonly Summary[]
  }>
  /**
   * The sums have changed. `cause` `update`: by the updates delivered just before. Anything else: they were replaced,
   * and whoever adds up by itself starts from here.
   */
  totals: { readonly totals: Totals; readonly position: string; readonly cause: 'update' | 'open' | 'reset' | 'mismatch' | 'shared' }
  state: StateChange
  /** An attempt or a connection has failed. `final`: for good, and `state` is `closed`. */
  error: StreamError
  /** A frame is missing, noticed by the next one or by a heartbeat; the stream resumes, which brings what is missing. */
  gap: { readonly noticed_by: 'after' | 'heartbeat'; readonly position: string | null; readonly stated: string }
  /** Own sums were not what the server states. They have been replaced. Never seen; report it if you do. */
  mismatch: { readonly strategy_id: number; readonly own: readonly Summary[]; readonly stated: readonly Summary[]; readonly position: string }
  /** Every block that this tab's own connection brings, before it is looked at. For inspectors. */
  frame: Frame
}

/**
 * A stream that stays open: it reconnects, resumes where it was, and counts nothing twice and misses nothing.
 *
 * ```js
 * const stream = new TallywireStream({ url: '/stream', strategyIds: '*', token: () => login.token() })
 * stream.on('totals', ({ totals }) => show(totals.get(3)))
 * ```
 */
export declare class TallywireStream {
  /** Opens it at once; listeners that are added in the same turn miss nothing. Throws TypeError for options that cannot be. */
  constructor(options: StreamOptions)
  readonly state: State
  readonly role: Role
  /** Why it is closed, where that was not asked for. */
  readonly error: StreamError | null
  /** Where the sums stand; null before the first `stream_open`. */
  readonly position: string | null
  /** Sums by strategy, order types in the order in which the server showed them. The same map until the next change. */
  readonly totals: Totals
  /** Calls `listener` for each event of the type, until the function is called that it answers. What a listener throws is reported and does no harm. */
  on<Type extends keyof StreamEvents>(type: Type, listener: (event: StreamEvents[Type]) => void): () => void
  /** Sums and position in one, for the next visit; null before the first `stream_open`. */
  snapshot(): Snapshot | null
  /** Ends it, for this tab. Nothing is delivered afterwards, but the `state` that says so. */
  close(): void
}

/** What the client takes from the world outside. */
export interface Environment {
  fetch: typeof fetch
  /** Milliseconds that nobody sets; may stand still while the machine sleeps. */
  now: () => number
  /** Milliseconds of the wall clock; goes on while the machine sleeps. */
  wall: () => number
  random: () => number
  setTimeout: (callback: () => void, ms: number) => unknown
  clearTimeout: (timer: never) => void
  /** Tells `online`, `pagehide`, `pageshow`, `freeze`, `resume` and `visibilitychange`. */
  page: EventTarget | null
  locks: Pick<LockManager, 'request'> | null
  BroadcastChannel: typeof BroadcastChannel | null
}

/** Bytes to blocks, as WHATWG HTML 9.2.6 has it. Pure; for tests and for whoever builds something else. */
export declare class EventParser {
  constructor(maxFrameLength?: number)
  /** The blocks that are complete with these bytes, cut anywhere. Throws RangeError when a block gets too long. */
  feed(bytes: Uint8Array): Frame[]
}

/** Position and sums of one stream. Pure. */
export declare class Tally {
  constructor(from?: Snapshot | null)
  readonly base: string
  readonly position: string | null
  readonly totals: Totals
  snapshot(): Snapshot | null
}
