"""Where the Kubernetes API is, and who we are there: a kubeconfig, or the account of the pod that we are, as lightkube reads them.

Of that library only credentials and connections are used. It reads the account's token again when the API server refuses it. (The official
client would bring 120 MiB of models, all of them twice, into an image that asks for ConfigMaps and one Node.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from lightkube.config.client_adapter import AsyncClient, Client, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError as Unusable
from yaml import YAMLError

from agent.errors import ConfigError

#: What a request may raise.
TROUBLE = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, Unusable, OSError, ValueError)

#: Time limits are each caller's own matter.
_WAYS = ConnectionParams(timeout=None)


def _access(kubeconfig: Path | None) -> SingleConfig:
    known = KubeConfig.from_file(kubeconfig) if kubeconfig is not None else KubeConfig.from_service_account()
    found = known.get()
    if found is None or found.user is None:
        raise ConfigError("it names no user")
    return found


@contextmanager
def _said_in_our_words() -> Iterator[None]:
    try:
        yield
    except KeyError as exc:
        raise ConfigError(f"{exc.args[0]} is missing") from exc
    except (AttributeError, TypeError) as exc:
        raise ConfigError("this has not the shape of a kubeconfig") from exc
    except (*TROUBLE, YAMLError) as exc:
        raise ConfigError(str(exc)) from exc


def connection(kubeconfig: Path | None) -> httpx2.Client:
    """By this kubeconfig, or as the pod that we are. Raises ConfigError with the cause."""
    with _said_in_our_words():
        return Client(_access(kubeconfig), _WAYS)


def async_connection(kubeconfig: Path | None) -> httpx2.AsyncClient:
    """The same for asyncio. Raises ConfigError with the cause."""
    with _said_in_our_words():
        return AsyncClient(_access(kubeconfig), _WAYS)
