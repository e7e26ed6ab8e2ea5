"""Train state, optimizer, step, loop, checkpoints, metrics and configuration checks."""
