"""Secrets: by name, within a budget, and in no text."""

import pytest

from evaluators.broker import Broker, SecretRefused

VALUES = {"JUDGE_KEY": "planted-judge-key", "DATA_KEY": "planted-data-key", "PIN": "12"}


def test_a_secret_is_spent_by_name_only() -> None:
    broker = Broker(VALUES.get, usable=["JUDGE_KEY", "GONE"])
    assert broker.spend("JUDGE_KEY") == "planted-judge-key"
    with pytest.raises(SecretRefused, match="'DATA_KEY' is not among those this job may use"):
        broker.spend("DATA_KEY")
    with pytest.raises(SecretRefused, match="there is no secret 'GONE'"):
        broker.spend("GONE")


def test_the_environment_has_what_the_operator_granted() -> None:
    broker = Broker(VALUES.get, usable=["JUDGE_KEY"], granted=["DATA_KEY"])
    assert broker.environment([]) == {}
    assert broker.environment(["DATA_KEY"]) == {"DATA_KEY": "planted-data-key"}
    with pytest.raises(SecretRefused, match="'JUDGE_KEY' is not granted"):
        broker.environment(["DATA_KEY", "JUDGE_KEY"])
    for name in ("LD_PRELOAD", "PYTHONPATH", "PATH", "EP_OUTPUT_DIR"):
        with pytest.raises(ValueError, match="steers the sandbox"):
            Broker(VALUES.get, granted=[name])
    with pytest.raises(ValueError, match="no name of a secret"):
        Broker(VALUES.get, usable=["a b"])


def test_the_budget_ends_and_no_text_shows_a_value() -> None:
    broker = Broker(VALUES.get, usable=VALUES, calls=2)
    broker.spend("JUDGE_KEY")
    broker.spend("PIN")
    with pytest.raises(SecretRefused, match="2 look-ups of secrets are spent") as refused:
        broker.spend("DATA_KEY")
    assert "planted" not in repr(broker) + str(refused.value)
    assert broker.redact("key=planted-judge-key, pin 12") == "key=[secret], pin 12"
    assert broker.used == 2
