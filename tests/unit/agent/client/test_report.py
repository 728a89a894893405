"""What a client says of itself."""

from agent.carrier.api import Up
from agent.client.report import Seen, judge
from agent.messages import Grant
from agent.status import Verdict


def test_a_credential_that_cannot_be_kept_is_said_while_all_else_is_well() -> None:
    up = Up(1, "spiffe://a/seed-server", "192.0.2.1:8443", "SNI", 1)
    grant = Grant(1, "e1", (), (), (), (), (), (), 1420, 20, lifetime_s=100.0)
    seen = Seen(
        True, up, None, grant, None, 0.1, None, None, "", "", (), 1420, 0.0, unkept="our newest credential is lost"
    )
    judgement = judge(seen)
    assert judgement.verdict is Verdict.DEGRADED and "our newest credential is lost" in judgement.sentence
