"""The table of the routes has one row for each method of a path, and the facts that the document needs."""

from textmill_router.api.route_table import ROUTES, openapi_document


def test_no_path_has_a_method_twice_and_no_two_operations_one_name() -> None:
    operations = [row.operation for row in ROUTES]
    assert len({(one.path, one.method) for one in operations}) == len(operations)
    names = [one.operation_id for one in operations if one.is_shown]
    assert len(set(names)) == len(names)
    assert all(names)


def test_the_document_has_the_routes_that_are_shown() -> None:
    documented = {(path, method) for path, methods in openapi_document()["paths"].items() for method in methods}
    assert ("/v1/models/{model}", "get") in documented
    assert {path for path, _ in documented} & {"/docs", "/openapi.json"} == set()
    assert len(documented) == sum(row.operation.is_shown for row in ROUTES)


def test_only_monitoring_and_pages_work_without_a_key() -> None:
    free = {row.operation.path for row in ROUTES if not row.needs_key}
    monitoring = {"/", "/health", "/ping", "/metrics", "/health/live", "/health/ready", "/health/startup"}
    monitoring |= {"/v2/health/live", "/v2/health/ready"}
    pages = {"/docs", "/docs/{asset}", "/playground", "/playground/{asset}", "/openapi.json", "/api-doc/openapi.json"}
    assert free == monitoring | pages
    assert {row.operation.method for row in ROUTES if not row.needs_key} == {"get"}
