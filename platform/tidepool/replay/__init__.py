"""A request trace against a real deployment beside a real training run, on logical accelerators of a local cluster."""
