"""Other servers which do the same job, to compare with in one run: absolute times drift, ratios do not."""
