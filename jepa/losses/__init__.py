"""Pure functions of arrays, written over the global batch and exact on any mesh."""
