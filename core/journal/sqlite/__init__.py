"""The journal on disk: one SQLite file in WAL mode, written by one thread. The only importer of sqlite3."""
