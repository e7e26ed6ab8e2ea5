"""Layers: attention, rotary embeddings, MLPs, norms, stacks, pooling. They know nothing of JEPA."""
