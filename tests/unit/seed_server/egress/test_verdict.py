"""One line, whatever somebody put into the words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seed_server.egress.verdict import REASON_MAX, Failure, Stage, reason, reply, tunnel_down


def test_the_cause_is_the_reason_phrase() -> None:
    assert reply(tunnel_down("no client for 42s")) == b"HTTP/1.1 503 tunnel down: no client for 42s\r\n\r\n"


@given(st.text(max_size=400))
def test_no_words_break_out_of_the_line(words: str) -> None:
    line = reply(Failure(502, Stage.DIAL, "x", words))
    assert re.fullmatch(rb"HTTP/1\.1 502 [!-~]([ -~]{0,198}[!-~])?\r\n\r\n", line), line
    assert len(reason(words)) <= REASON_MAX


@pytest.mark.parametrize("words", ["", " ", "\r\n"])
def test_there_is_always_a_reason(words: str) -> None:
    assert reason(words).strip()
