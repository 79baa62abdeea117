"""Answers the autoscaler as the Prometheus Adapter would with overlays/in-flight/adapter-rules.yaml: runs in a pod of
its own.

It asks the /metrics of the service's pods itself, which it finds through the API with its service account.
"""

import http.server
import json
import re
import ssl
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

HOME = Path("/adapter")  # this file, tls.crt and tls.key
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "/apis/custom.metrics.k8s.io/v1beta2"
METRIC = "emnist_requests_in_flight"
NAMESPACE, SELECTOR, PORT = "emnist", "app.kubernetes.io/component=serve", 8090
SESSIONS = re.compile(r'^haproxy_backend_current_sessions\{proxy="torchserve(?:_large)?"\} (\d+)', re.MULTILINE)
TIMEOUT_S = 2


def pods():
    url = f"https://kubernetes.default.svc/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={SELECTOR}"
    asking = urllib.request.Request(url, headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"})
    trusted = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    with urllib.request.urlopen(asking, timeout=TIMEOUT_S, context=trusted) as answer:
        return json.load(answer)["items"]


def in_flight(address):
    with urllib.request.urlopen(f"http://{address}:{PORT}/metrics", timeout=TIMEOUT_S) as answer:
        return sum(map(int, SESSIONS.findall(answer.read().decode())))


def values():
    for pod in pods():
        try:
            value = in_flight(pod["status"]["podIP"])
        except (OSError, KeyError):  # a pod that starts or ends
            continue
        described = {"apiVersion": "v1", "kind": "Pod", "namespace": NAMESPACE, "name": pod["metadata"]["name"]}
        yield {
            "describedObject": described,
            "metric": {"name": METRIC},
            "timestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "value": str(value),
        }


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if f"/pods/*/{METRIC}" in urllib.parse.unquote(self.path):
            body = {
                "kind": "MetricValueList",
                "apiVersion": "custom.metrics.k8s.io/v1beta2",
                "metadata": {},
                "items": list(values()),
            }
        else:
            resource = {
                "name": f"pods/{METRIC}",
                "singularName": "",
                "namespaced": True,
                "kind": "MetricValueList",
                "verbs": ["get"],
            }
            body = {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": "custom.metrics.k8s.io/v1beta2",
                "resources": [resource],
            }
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("", 8443), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(HOME / "tls.crt", HOME / "tls.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
