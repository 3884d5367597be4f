"""`tianquan bench`: how fast and how large the model is on this machine, on synthetic weights of its size."""
