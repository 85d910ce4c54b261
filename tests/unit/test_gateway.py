"""The application at `/`, without a cluster."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tidepool.serve import gateway


@pytest.fixture
def client() -> TestClient:
    return TestClient(gateway.build(served=lambda: [{"name": "digits", "state": "READY", "reason": ""}]))


@pytest.mark.parametrize(
    ("path", "document"), [("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True})]
)
def test_health_answers(client: TestClient, path: str, document: dict[str, bool]) -> None:
    assert client.get(path).json() == document


def test_the_server_says_what_it_is(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "tidepool"
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]


def test_the_index_lists_what_is_served(client: TestClient) -> None:
    assert client.post("/v2/repository/index").json()[0]["name"] == "digits"


@pytest.mark.parametrize("path", ["/v2/models/iris/infer", "/v2/models/iris", "/nonsense"])
def test_what_is_not_there_is_not_found_in_the_one_shape_of_an_error(client: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        response = client.request(method, path)
        assert response.status_code == 404
        assert list(response.json()) == ["error"]


def test_a_missing_model_is_answered_with_those_there_are(client: TestClient) -> None:
    assert "Allowed: digits" in client.get("/v2/models/iris").json()["error"]


def test_a_wrong_method_is_refused(client: TestClient) -> None:
    response = client.post("/v2/health/live")
    assert response.status_code == 405
    assert "error" in response.json()


def test_the_page_of_the_interface_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    assert client.get("/docs/assets/swagger-ui-bundle.js").status_code == 200
    assert "/v2/models/{model}/infer" in client.get("/openapi.json").json()["paths"]
