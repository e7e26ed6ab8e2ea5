"""Which tokens are seen and which are predicted: exact counts, from (seed, sample index) alone."""
