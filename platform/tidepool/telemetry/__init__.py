"""What a running system says of itself."""
