"""Packaging, the local server, the batch program and the client."""
