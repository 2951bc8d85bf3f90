"""The benchmarks: what Tallywire costs, measured from the outside, beside the same job done plainly.

`python -m bench` runs them. Everything stays on 127.0.0.0/8, is bounded in count and
time, and ends by itself.
"""
