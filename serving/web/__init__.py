"""The drawing page and its gateway: a thin client of the model service's Open Inference Protocol endpoint.

    python -m serving.web [--host 127.0.0.1] [--port 8000] [--upstream http://127.0.0.1:8080]

It prepares no picture, knows no label and loads no model: that is the model service's. What it does is an edge's:
limits, deadlines, keys, headers, logs, and answers in one form.
"""
