"""Batches → weights: a library that takes any iterable of tensors and knows nothing of Prefect."""
