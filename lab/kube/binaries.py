"""Where the Kubernetes programs are: as the environment says, else where scripts/kube-binaries put them."""

from __future__ import annotations

import os
from pathlib import Path

from lab.processes import LabError

_CACHE = Path.home() / ".cache" / "rhizome" / "bin"
_VARIABLES = {"kube-apiserver": "KUBE_APISERVER", "kubectl": "KUBECTL", "etcd": "ETCD"}


def binary(name: str) -> str:
    """Path of a program. Raises LabError, which says how to get it, when it is not there."""
    variable = _VARIABLES.get(name)
    chosen = os.environ.get(variable, "") if variable is not None else ""
    path = Path(chosen) if chosen else _CACHE / name
    if not os.access(path, os.X_OK):
        hint = f", or let {variable} name one" if variable is not None else ""
        raise LabError(f"there is no program {path}: build it with `scripts/kube-binaries {name}`{hint}")
    return str(path)
