"""Entry points, thin: train, evaluate, prepare_data, quickstart, benchmark."""
