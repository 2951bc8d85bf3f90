"""Tallywire beside its peers, in one run and in turns: `python -m bench.versus`."""
