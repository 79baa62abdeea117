"""TorchServe and HAProxy: their processes, their configuration, and what a pod starts."""
