"""Data: read, check, split, MapReduce, preprocess, on Ray Data and Arrow kernels."""
