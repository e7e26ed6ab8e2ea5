"""Retrieval, zero-shot classification, question answering and the report."""
