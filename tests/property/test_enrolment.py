"""Any text is a list of one-time tokens or a ValueError; what is added and taken out leaves the rest as it was."""

from hypothesis import given
from hypothesis import strategies as st

from agent.enrolment import Line, added, digest_of, find, made, parse, removed
from agent.identity import Identity, Role

LINES = st.builds(
    Line,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.sampled_from(["n1", "edge-7", "a.b"]).map(lambda name: Identity("a", Role.SHOOT_CLIENT, name)),
    st.integers(1_000, 4_000_000_000).map(float),
)


@given(st.text(max_size=200) | st.lists(LINES.map(str) | st.text(max_size=20), max_size=4).map("\n".join))
def test_any_text(text: str) -> None:
    problem = ""
    try:
        lines = parse(text)
    except ValueError as exc:
        problem, lines = str(exc), ()
    assert len(problem) < 300
    assert parse("\n".join(map(str, lines))) == lines


@given(
    st.lists(LINES, max_size=6, unique_by=lambda line: line.digest),
    st.binary(min_size=32, max_size=32),
    st.text(max_size=40),
)
def test_a_token_comes_and_goes(others: list[Line], random: bytes, remark: str) -> None:
    text = "# people\n" + "".join(f"{line}\n" for line in others)
    token = made(random)
    line = Line(digest_of(token), Identity("a", Role.SHOOT_CLIENT, "n9"), 4_100_000_000.0)
    longer = added(text, line, remark, now=0.0)
    assert find(parse(longer), token) == line and find(parse(text), token) is None
    assert removed(longer, lambda known: known == line) == text
