"""The application: its resources, middleware and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from service.api.middleware import (
    CORS_HEADERS,
    RateLimitHeaders,
    protocol_error_response,
    request_middleware,
)
from service.api.reference import page as reference
from service.api.resources import RESOURCES, open_resources
from service.api.routes import account, health, images, metrics, pictures, search, tags
from service.api.routes.docs import OpenApiDocument
from service.api.routes.front import FrontPage
from service.batcher import running
from service.config.settings import Settings
from service.http.bodies import defer_100_continue
from service.http.fast_path import FastPath
from service.http.server import ERROR_RESPONSE, SHORTCUT
from service.shared_memory.in_flight_bytes import InFlightBytes
from service.telemetry.metrics import metrics as process_metrics


def create_app(settings: Settings, in_flight_bytes: InFlightBytes | None = None) -> web.Application:
    app = web.Application(middlewares=[request_middleware])
    app[ERROR_RESPONSE] = protocol_error_response
    if settings.rate_limit is not None:
        app.on_response_prepare.append(RateLimitHeaders(settings.rate_limit))

    async def resources_context(app: web.Application) -> AsyncIterator[None]:
        async with open_resources(settings, in_flight_bytes) as resources:
            find_cached = partial(pictures.find_cached, resources.delivery)
            app[RESOURCES] = resources
            app[SHORTCUT] = FastPath("/i/", ("/i/{id}", "/i/{id}/{name}"), find_cached, CORS_HEADERS)
            async with running(process_metrics.requests.run()):
                yield

    app.cleanup_ctx.append(resources_context)

    route = app.router
    route.add_get("/v1/images", images.create_from_url, allow_head=False)
    route.add_post("/v1/images", images.create, expect_handler=defer_100_continue)
    route.add_get("/v1/images/search", search.find)
    route.add_get("/v1/images/{id}", images.show)
    route.add_delete("/v1/images/{id}", images.delete, expect_handler=defer_100_continue)
    route.add_get("/v1/images/{id}/delete", images.delete, allow_head=False)
    route.add_put("/v1/images/{id}/tags", tags.add, expect_handler=defer_100_continue)
    route.add_get("/v1/images/{id}/add_tags", tags.add, allow_head=False)
    route.add_delete("/v1/images/{id}/tags", tags.remove, expect_handler=defer_100_continue)
    route.add_get("/v1/images/{id}/remove_tags", tags.remove, allow_head=False)
    route.add_get("/v1/account", account.show)

    route.add_get("/i/{id}", pictures.show)
    route.add_get("/i/{id}/{name}", pictures.show)

    route.add_get("/", FrontPage(settings).show)
    route.add_get("/docs", reference.show)
    route.add_get("/docs/{asset}", reference.show_asset)
    route.add_get("/openapi.json", OpenApiDocument(settings).show)
    route.add_get("/healthz", health.alive)
    route.add_get("/readyz", health.ready)
    route.add_get("/metrics", metrics.show)
    return app
