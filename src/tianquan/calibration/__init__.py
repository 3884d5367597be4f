"""Low-bit weights fitted to the activations that records cause, instead of each to itself."""
