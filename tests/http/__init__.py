"""Routes over real sockets, on the loop of the test."""
