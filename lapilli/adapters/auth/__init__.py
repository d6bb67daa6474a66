"""Ways to establish who asks."""
