"""The domain of Tallywire: counts, positions, streams and the journal. No Tornado in here."""
