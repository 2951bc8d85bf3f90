"""Tests: pure parts by tables and properties, edges over real sockets, the whole as a process."""
