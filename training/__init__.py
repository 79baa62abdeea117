"""From EMNIST images to an exported TorchScript model. Never ships to a server."""
