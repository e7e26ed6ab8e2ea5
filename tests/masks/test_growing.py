"""The exact counts that blocks grow to."""

import numpy as np

from jepa.masks import blocks


def test_counts_are_exact_where_rounding_makes_births_equal(monkeypatch):
    monkeypatch.setattr(blocks, "_TIE", 0.0)  # as if what decides between equals were lost
    born = np.repeat([[[1.0, 1.0, 2.0], [1.0, 3.0, 3.0]]], 4, axis=0)
    for count in range(1, 7):
        taken = blocks.smallest(born, np.full((4, 2), 0.3), count)
        assert (taken.sum(axis=(1, 2)) == count).all()
        assert born[taken].max() <= np.sort(born[0], axis=None)[count - 1]
