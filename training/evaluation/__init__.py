"""How well a model reads: what it predicted, the metrics of that, and pictures in every style."""
