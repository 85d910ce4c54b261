"""Where everything runs: the local cluster, its processes and ports, and the files that describe bigger ones."""
