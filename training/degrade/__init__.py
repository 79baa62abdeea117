"""Training images as the world would show them, and as the preprocessing then hands them to the network."""
