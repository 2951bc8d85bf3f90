"""Client programs, one library each: they print every event as a JSON line and nothing else.

Those that `read` one stream print `[event, data, id]`; a `crowd`, with a stream for each of many users, puts the user
first: `[user_id, event, data, id]`.
"""
