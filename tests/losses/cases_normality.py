"""Cases of `loss_cases`."""

CASES = []
