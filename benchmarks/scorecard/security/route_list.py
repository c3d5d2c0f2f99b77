"""Every page and every rpc that the server has, and what each may ask for: written down, to be compared with the code.

A page or an rpc that is new is not listed, and so fails E1 and tests/serve/test_access.py until somebody has thought
about the scope it needs.
"""

import asyncio
from collections.abc import Mapping

from mlserve.serve.access import Scope
from mlserve.serve.answering import Answering
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS, SLOW_CALLS, http_dialects
from mlserve.serve.protocols.dialect import InferCall, InferPage
from mlserve.serve.service import Service
from mlserve.serve.settings import NamedRoute, ServeSettings

__all__ = [
    "EVERYTHING",
    "MANAGEMENT_PAGES",
    "PAGES",
    "RPCS",
    "SCOPES",
    "Pages",
    "listed_pages",
    "listed_rpcs",
    "pages_of_the_code",
    "rpcs_of_the_code",
]

SCOPES: tuple[Scope, ...] = ("infer", "metadata", "admin", "metrics")
EVERYTHING = ServeSettings(
    routes=tuple(
        NamedRoute(f"/named/{each}", "tiny", "", each) for each in ("predict", "vertex", "sagemaker", "azure")
    ),
    health_paths=("/vertex/health",),
)
"""Settings with which the server has every page that it can have."""

PAGES: dict[Scope | None, str] = {
    None: """
        GET /health  GET /ready  GET /v2/health/live  GET /v2/health/ready
        GET /ping    GET /version  GET /vertex/health
    """,
    "infer": """
        POST /v2/models/{name}/infer          POST /v2/models/{name}/versions/{version}/infer
        POST /v1/models/{name}:predict        POST /v1/models/{name}/versions/{version}:predict
        POST /v1/models/{name}:classify       POST /v1/models/{name}/versions/{version}:classify
        POST /v1/models/{name}:regress        POST /v1/models/{name}/versions/{version}:regress
        POST /v1/models/{name}/labels/{label}:predict   POST /v1/models/{name}/labels/{label}:classify
        POST /v1/models/{name}/labels/{label}:regress
        POST /v1/predict                      POST /v1/models/{name}/predict
        POST /v1/models/{name}/versions/{version}/predict
        POST /predictions/{name}              POST /predictions/{name}/{version}
        PUT /predictions/{name}               PUT /predictions/{name}/{version}
        POST /invocations  POST /models/{name}/invoke  POST /score
        POST /named/predict  POST /named/vertex  POST /named/sagemaker  POST /named/azure
    """,
    "metadata": """
        GET /  OPTIONS /  GET /docs  GET /openapi.json
        GET /v2  GET /v2/  POST /v2/repository/index
        GET /v2/models/{name}                 GET /v2/models/{name}/versions/{version}
        GET /v2/models/{name}/ready           GET /v2/models/{name}/versions/{version}/ready
        GET /v2/models/{name}/config          GET /v2/models/{name}/versions/{version}/config
        GET /v1/models/{name}/metadata        GET /v1/models/{name}/versions/{version}/metadata
        GET /v1/models/{name}/labels/{label}/metadata
        GET /v1/models/{name}                 GET /v1/models/{name}/versions/{version}
        GET /v1/models/{name}/labels/{label}
        GET /v1/models  GET /v1/models/{name}/example  POST /graphql
        GET /models  GET /models/{name}
    """,
    "metrics": """
        GET /metrics  GET /v2/models/stats
        GET /v2/models/{name}/stats           GET /v2/models/{name}/versions/{version}/stats
    """,
    "admin": """
        POST /v2/repository/models/{name}/load  POST /v2/repository/models/{name}/unload
        GET /v2/systemsharedmemory/status       POST /v2/systemsharedmemory/status
        GET /v2/systemsharedmemory/unregister   POST /v2/systemsharedmemory/unregister
        GET /v2/systemsharedmemory/region/{region}/status
        POST /v2/systemsharedmemory/region/{region}/status
        GET /v2/systemsharedmemory/region/{region}/register
        POST /v2/systemsharedmemory/region/{region}/register
        GET /v2/systemsharedmemory/region/{region}/unregister
        POST /v2/systemsharedmemory/region/{region}/unregister
        GET /v2/cudasharedmemory/status         POST /v2/cudasharedmemory/status
        GET /v2/cudasharedmemory/unregister     POST /v2/cudasharedmemory/unregister
        GET /v2/cudasharedmemory/region/{region}/status
        POST /v2/cudasharedmemory/region/{region}/status
        GET /v2/cudasharedmemory/region/{region}/register
        POST /v2/cudasharedmemory/region/{region}/register
        GET /v2/cudasharedmemory/region/{region}/unregister
        POST /v2/cudasharedmemory/region/{region}/unregister
        GET /v2/trace/setting  POST /v2/trace/setting  GET /v2/logging  POST /v2/logging
        GET /v2/models/{name}/trace/setting  POST /v2/models/{name}/trace/setting
        POST /models  DELETE /models/{name}
        POST /recording                         GET /recording/{number:int}
        DELETE /recording/{number:int}          GET /recording/{number:int}/trace
    """,
}
"""The pages of the public port, by the scope each needs; None: public, and a list to be read with care."""

MANAGEMENT_PAGES: dict[Scope | None, str] = {
    "admin": """
        OPTIONS /  GET /docs  GET /openapi.json
        GET /models             POST /models
        GET /models/{name}      PUT /models/{name}      DELETE /models/{name}
        GET /models/{name}/{version}  PUT /models/{name}/{version}  DELETE /models/{name}/{version}
        PUT /models/{name}/{version}/set-default
    """
}
"""The same of the management port."""

V2, TENSORFLOW = "/inference.GRPCInferenceService", "/tensorflow.serving"
RPCS: dict[Scope | None, str] = {
    None: f"{V2}/ServerLive {V2}/ServerReady /grpc.health.v1.Health/Check /grpc.health.v1.Health/Watch",
    "infer": f"""
        {V2}/ModelInfer {V2}/ModelStreamInfer {TENSORFLOW}.PredictionService/Predict
        {TENSORFLOW}.PredictionService/Classify {TENSORFLOW}.PredictionService/Regress
    """,
    "metadata": f"""
        {V2}/ModelReady {V2}/ServerMetadata {V2}/ModelMetadata {V2}/ModelConfig {V2}/RepositoryIndex
        {TENSORFLOW}.PredictionService/GetModelMetadata {TENSORFLOW}.ModelService/GetModelStatus
        /grpc.reflection.v1.ServerReflection/ServerReflectionInfo
        /grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo
    """,
    "metrics": f"{V2}/ModelStatistics",
    "admin": f"""
        {V2}/RepositoryModelLoad {V2}/RepositoryModelUnload {V2}/TraceSetting {V2}/LogSettings
        {V2}/SystemSharedMemoryStatus {V2}/SystemSharedMemoryRegister {V2}/SystemSharedMemoryUnregister
        {V2}/CudaSharedMemoryStatus {V2}/CudaSharedMemoryRegister {V2}/CudaSharedMemoryUnregister
    """,
}
"""Every rpc, by the scope it needs."""

Pages = dict[tuple[str, str], Scope | None]
"""`{(method, path): scope}`."""


def listed_pages(table: Mapping[Scope | None, str]) -> Pages:
    """`{(method, path): scope}` of one of the tables above."""
    found: Pages = {}
    for scope, lines in table.items():
        words = lines.split()
        found |= dict.fromkeys(zip(words[::2], words[1::2], strict=True), scope)
    return found


def pages_of_the_code(settings: ServeSettings = EVERYTHING, *, management: bool) -> Pages:
    """`{(method, path): scope}` of every page that the code has."""
    loop = asyncio.new_event_loop()
    service = Service(Catalog())
    try:
        dialects = http_dialects(service, Answering(service, LoopTurn(loop)), settings)
    finally:
        loop.close()
    found: Pages = {}
    for page in (page for dialect in dialects for page in dialect.pages):
        infers = isinstance(page, InferPage)
        if (not infers and page.admin) == management:
            methods, scope = (("POST",), "infer") if infers else (page.methods, page.scope)
            for method in methods:  # of two with the same path, the first has it
                found.setdefault((method, page.path), scope)
    return found


def listed_rpcs() -> dict[str, Scope | None]:
    """`{path: scope}` of the table above."""
    return {path: scope for scope, paths in RPCS.items() for path in paths.split()}


def rpcs_of_the_code() -> dict[str, Scope | None]:
    """`{path: scope}` of every rpc that the code has."""
    return {call.path: "infer" if isinstance(call, InferCall) else call.scope for call in (*CALLS, *SLOW_CALLS)}
