"""Pure modules."""
