"""How the process that answers to `mlserve bench` ends."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlserve.bench.generator.job import Failed
from mlserve.bench.generator.pipe import Pipe
from mlserve.errors import MlserveError

__all__ = ["told_over"]


@contextmanager
def told_over(environment: Any, pipe: Pipe) -> Iterator[None]:
    """Tells `mlserve bench` why its block failed, if it did; then Locust's process ends, or shows its page on."""
    try:
        yield
    except MlserveError as error:
        pipe.send(Failed(reason=str(error)))
        pipe.close()
    except Exception:
        traceback.print_exc()
        environment.process_exit_code = 1
    if environment.web_ui is None:
        environment.runner.quit()
    else:
        environment.runner.stop()
