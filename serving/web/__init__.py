"""The drawing page and its gateway: a thin client of the model service's Open Inference Protocol endpoint.

    python -m serving.web [--sockets /run/emnist] [--model emnist]

It prepares no picture, knows no label and loads no model: that is the model service's. It stands behind HAProxy on a
Unix socket. Limits, deadlines, key, request id, security headers and access log are HAProxy's (serving/service).
"""
