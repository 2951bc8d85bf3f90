"""The server as its own process, read by programs that nobody here wrote."""
