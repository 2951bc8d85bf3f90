"""The durable, ordered record of accepted batches: the interface and its drivers."""
