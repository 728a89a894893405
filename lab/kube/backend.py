"""An HTTPS server in a pod of the shoot: an admission webhook and an aggregated API, for kube-apiserver to call.

backend.py PORT CERTIFICATE KEY

POST /validate                                    refuses a ConfigMap whose data says `allowed: "no"`
GET  /apis/lab.rhizome.test/v1/greetings/NAME     an object of the aggregated API, after its discovery documents
"""

from __future__ import annotations

import ssl
import sys
from typing import Any

from aiohttp import web

GROUP = "lab.rhizome.test"
_VERSION = {"groupVersion": f"{GROUP}/v1", "version": "v1"}
_API_GROUP = {"name": GROUP, "versions": [_VERSION], "preferredVersion": _VERSION}
_RESOURCE = {"name": "greetings", "singularName": "greeting", "namespaced": False, "kind": "Greeting", "verbs": ["get"]}


async def validate(request: web.Request) -> web.Response:
    review = await request.json()
    asked = review["request"]
    allowed = (asked["object"].get("data") or {}).get("allowed") != "no"
    answer: dict[str, Any] = {"uid": asked["uid"], "allowed": allowed}
    if not allowed:
        answer["status"] = {"message": "the webhook in the shoot says no"}
    return web.json_response({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": answer})


async def groups(_: web.Request) -> web.Response:
    return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": [_API_GROUP]})


async def group(_: web.Request) -> web.Response:
    return web.json_response({"kind": "APIGroup", "apiVersion": "v1", **_API_GROUP})


async def resources(_: web.Request) -> web.Response:
    return web.json_response(
        {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/v1", "resources": [_RESOURCE]}
    )


async def greeting(request: web.Request) -> web.Response:
    user = request.headers.get("X-Remote-User", "nobody")
    return web.json_response(
        {
            "kind": "Greeting",
            "apiVersion": f"{GROUP}/v1",
            "metadata": {"name": request.match_info["name"]},
            "spec": {"text": f"hello {user}, from the shoot"},
        }
    )


def main(port: str, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    app = web.Application()
    app.add_routes(
        [
            web.post("/validate", validate),
            web.get("/apis", groups),
            web.get(f"/apis/{GROUP}", group),
            web.get(f"/apis/{GROUP}/v1", resources),
            web.get(f"/apis/{GROUP}/v1/greetings/{{name}}", greeting),
        ]
    )
    web.run_app(app, port=int(port), ssl_context=context, access_log=None, print=None, backlog=512)


if __name__ == "__main__":
    main(*sys.argv[1:])
