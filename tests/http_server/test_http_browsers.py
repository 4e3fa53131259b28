"""Requests of web pages from other origins are rejected."""

from typing import Any

import pytest

from serving import Served

CALL = b'{"model": "auto", "messages": [{"role": "user", "content": "hello"}]}'
FORM, JSON = "application/x-www-form-urlencoded", "application/json"


async def sent(
    served: Served, headers: dict[str, str], method: str = "POST", path: str = "/v1/chat/completions"
) -> Any:
    body = CALL if method == "POST" else None
    return await served.http.request(method, path, content=body, headers=headers)


async def test_origin_is_compared_by_scheme_host_and_port(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    other = str(int(port) - 1)
    foreign = (
        f"http://evil.com//127.0.0.1:{port}",
        "http://evil.com//127.0.0.1",
        f"http://localhost:{other}",
        "http://127.0.0.1",
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}@evil.com",
        f"http://evil.com@127.0.0.1:{port}",
        f"http://127.0.0.1:{port}.evil.com",
        f"http://127.0.0.1.evil.com:{port}",
        f"http://127.0.0.1:{port}/",
        f"//127.0.0.1:{port}",
        f"127.0.0.1:{port}",
        f"file://127.0.0.1:{port}",
        f"http://[::1]evil:{port}",
        f"http://127.0.0.1:{port} http://evil.com",
        "null",
        "",
    )
    before = served.provider.stats()["requests"]
    for origin in foreign:
        for path in ("/v1/chat/completions", "/api/v1/jobs/n1/cancel"):
            refused = await sent(served, {"content-type": JSON, "origin": origin}, path=path)
            assert refused.status_code == 403, origin
        assert (await sent(served, {"origin": origin}, "GET", "/api/v1/jobs")).status_code == 403, origin
    assert served.provider.stats()["requests"] == before
    for origin in (served.url, f"http://localhost:{port}", f"http://LOCALHOST:{port}", f"http://[::1]:{port}"):
        assert (await sent(served, {"content-type": JSON, "origin": origin})).status_code == 200, origin


@pytest.mark.parametrize(
    ("site", "post", "get"),
    [("cross-site", 403, 403), ("same-site", 403, 403), ("same-origin", 200, 200), ("none", 200, 200)],
)
async def test_cross_site_request_without_origin_is_rejected(served: Served, site: str, post: int, get: int) -> None:
    assert (await sent(served, {"content-type": JSON, "sec-fetch-site": site})).status_code == post
    assert (await sent(served, {"sec-fetch-site": site}, "GET", "/api/v1/jobs")).status_code == get
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert (await sent(served, link, "GET", "/api/v1/jobs")).status_code == 200, "a link may be followed"
    assert (await sent(served, link | {"content-type": JSON})).status_code == post, "but no form sent"


PAGE = {"sec-fetch-site": "same-origin"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": JSON}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "Application/JSON"}, 200),
        ({"content-type": "application/merge-patch+json"}, 200),
        ({"content-type": FORM}, 200),  # curl -d
        ({}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "text/plain;charset=UTF-8"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "text/plain, application/json"}, 415),
        ({"content-type": "application/jsonx"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": JSON, **PAGE}, 200),
        ({"content-type": FORM, **PAGE}, 415),
        (PAGE, 415),
        ({"content-type": FORM, "referer": "http://evil.com/"}, 415),
        ({"referer": "http://evil.com/"}, 415),
    ],
)
async def test_body_requires_the_json_content_type(served: Served, headers: dict[str, str], status: int) -> None:
    before = served.provider.stats()["requests"]
    answer = await sent(served, headers)
    assert answer.status_code == status
    assert served.provider.stats()["requests"] == before + (status == 200)
    if status == 415:
        error = answer.json()["error"]
        assert (error["code"], "application/json" in error["message"]) == ("unsupported_media_type", True)
        own = await sent(served, headers, path="/api/v1/jobs/n1/complete")
        assert (own.status_code, own.headers["content-type"]) == (415, "application/problem+json")


async def test_same_origin_page_may_send_no_body(served: Served) -> None:
    assert (await served.ask(headers={"x-job-id": "n1"})).status_code == 200
    page = {"origin": served.url, "sec-fetch-site": "same-origin"}
    cancelled = await served.http.post("/api/v1/jobs/n1/cancel", headers=page)
    assert cancelled.status_code == 200
