"""Training: samples by position, data parallelism, and runs that resume, on Ray Train."""
