"""The application at `/`, without a cluster."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tidepool.serve import gateway, rest, triton


@pytest.fixture
def client() -> TestClient:
    entries = [*triton.index("digits", ["1", "2"]), *triton.index("iris", [], triton.UNAVAILABLE, "no room")]
    return TestClient(gateway.build(served=lambda: entries, readiness=lambda: True))


@pytest.mark.parametrize(
    ("path", "document"), [("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True})]
)
def test_health_answers(client: TestClient, path: str, document: dict[str, bool]) -> None:
    assert client.get(path).json() == document


def test_a_server_that_is_not_ready_says_so() -> None:
    response = TestClient(gateway.build(served=list, readiness=lambda: False)).get("/v2/health/ready")
    assert (response.status_code, response.json()) == (503, {"ready": False})


def test_the_server_says_what_it_is(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "tidepool"
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]


def test_the_index_lists_what_is_served(client: TestClient) -> None:
    listed = client.post("/v2/repository/index").json()
    assert [(entry["name"], entry["version"]) for entry in listed] == [("digits", "1"), ("digits", "2"), ("iris", "")]
    assert (listed[2]["state"], listed[2]["reason"]) == ("UNAVAILABLE", "no room")


def test_the_index_lists_those_that_are_ready_on_request(client: TestClient) -> None:
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert {entry["name"] for entry in ready} == {"digits"}


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"ready": 1}'])
def test_what_is_no_request_for_the_index_is_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/v2/repository/index", content=body)
    assert (response.status_code, "ready" in response.json()["error"]) == (400, True)


def test_a_question_that_is_longer_than_any_is_refused(client: TestClient) -> None:
    response = client.post("/v2/repository/index", content=b" " * (gateway.LONGEST_QUESTION + 1))
    assert (response.status_code, list(response.json())) == (413, ["error"])


def test_every_status_of_a_failure_is_documented_where_requests_are_answered(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/explain"):
        assert {str(status) for status in rest.STATUS.values()} <= paths[path]["post"]["responses"].keys()


@pytest.mark.parametrize("path", ["/v2/models/roses/infer", "/v2/models/roses", "/nonsense"])
def test_what_is_not_there_is_not_found_in_the_one_shape_of_an_error(client: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        response = client.request(method, path)
        assert response.status_code == 404
        assert list(response.json()) == ["error"]


def test_a_missing_model_is_answered_with_those_there_are(client: TestClient) -> None:
    assert "Allowed: digits, iris" in client.get("/v2/models/roses").json()["error"]


def test_a_wrong_method_is_refused(client: TestClient) -> None:
    response = client.post("/v2/health/live")
    assert response.status_code == 405
    assert "error" in response.json()


def test_the_page_of_the_interface_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    assert client.get("/docs/assets/swagger-ui-bundle.js").status_code == 200
    assert "/v2/models/{model}/infer" in client.get("/openapi.json").json()["paths"]
