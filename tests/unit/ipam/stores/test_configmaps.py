import sys
from pathlib import Path

import pytest

from agent.errors import StoreError, Unsupported
from ipam.stores.configmaps import in_configmaps


async def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipam.stores.kubernetes", None)
    with pytest.raises(Unsupported, match=r"pip install 'rhizome\[kubernetes\]'"):
        async with in_configmaps("garden", "tunnels"):
            pass


async def test_without_any_account_nothing_but_our_own_words_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning of the library's about a file that a pod does not need."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(StoreError, match="neither a usable kubeconfig nor a service account"):
        async with in_configmaps("garden", "tunnels"):
            pass
    assert caplog.text == ""
