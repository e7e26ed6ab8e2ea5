"""Losses: pure functions of global arrays, exact on any mesh."""
