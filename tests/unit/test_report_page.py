"""report.html from folders made by hand: every state, missing and damaged files, hostile text, long runs."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.run_folder import HOSTILE, described, journal, lines
from trainer import checkpoints
from trainer.beside import beside
from trainer.commands import show
from trainer.compose import compose
from trainer.errors import UsageError
from trainer.jobs import JobState
from trainer.report_page import CSP, write_report
from trainer.runs import Inputs, RowSource


class Tags(HTMLParser):
    """All start tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a described run; the cache of digests is in a folder of the test's own."""
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))
    described(tmp_path)
    return tmp_path / "run"


def page(folder) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def finished(folder, *, text: str = "plain") -> None:
    """Everything a finished run has, with `text` wherever a stranger's text can stand."""
    journal(folder, JobState.VALIDATING, JobState.RUNNING, JobState.COMPLETED, message=f"done {text}")
    steps = range(1, 11)
    lines(
        folder / "metrics.jsonl",
        [
            {"step": 0, "eval/loss": 4.0},
            *({"step": s, "loss": 4 / s, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 100} for s in steps),
            {"step": 5, "eval/loss": 0.5},
            {"step": 10, "eval/loss": 0.7},
        ],
    )
    lines(folder / "perf.jsonl", [{"step": s, "perf/tokens_per_second": 50.0, "perf/seconds": 0.1} for s in steps])
    answers = [{"asked": text, "expected": "x", "given": text, "exact": right} for right in (False, True)]
    (folder / "samples.json").write_text(json.dumps({"before": answers[:1] * 2, "after": answers}))
    ledger = {
        "source": {"name": text},
        "totals": {"rows": {"read": 1234, "held_out": 5}, "tokens": {"total": 99}},
        "reasons": {text: 3},
        "warnings": [f"look {text}"],
        "problems": {"refused": [f"line 7: {text}"], "dropped": []},
    }
    (folder / "ledger.json").write_text(json.dumps(ledger))
    (folder / "confession.json").write_text(json.dumps({"a": {text: [text]}}))
    (folder / "estimate.json").write_text(json.dumps({"seconds": 12}))
    (folder / "sync_parked.jsonl").write_text(f'{{"error": "{text}"}}\n')

    def fill(weights, state):
        (weights / "adapter_config.json").write_text("{}")
        (state / "state.json").write_text("{}")

    checkpoints.write(folder / "checkpoints", 10, lora=True, cursor={}, fill=fill)
    (folder / "model").mkdir()
    (folder / "model/adapter_config.json").hardlink_to(folder / "checkpoints/step-10/weights/adapter_config.json")
    (folder / "model/tokenizer.json").write_text("{}")


def test_a_finished_run_tells_what_matters_first(run):
    finished(run)
    text = Tags(page(run)).text
    head = text[: text.index("Answers before and after")]
    for words in ("completed", "0.0% → 50.0%", "of 2 held-out rows", "4 → 0.7", "best 0.5 at step 5", "1,000", "2.0 s"):
        assert words in head, words
    for words in ("✗ wrong", "✓ right", "1,234", "3 × plain", "Warning: look plain", "typed (as data.train)"):
        assert words in text, words
    assert "cross_entropy" in text and "resume, promote" in text
    assert f"python -m trainer chat {run}" in text and f"python -m trainer resume {run}" not in text


def test_the_curves_are_drawn_with_names(run):
    finished(run)
    drawn = [attributes for tag, attributes in Tags(page(run)).tags if tag == "svg"]
    names = [str(one["aria-label"]).partition(".")[0] for one in drawn]
    assert names == ["Training loss", "Held-out loss", "Learning rate", "Gradient norm", "Speed"]
    assert {one["role"] for one in drawn} == {"img"}


def charts(folder) -> dict[str, str]:
    """Each chart's name, with what is said of it."""
    told = [str(attributes["aria-label"]) for tag, attributes in Tags(page(folder)).tags if tag == "svg"]
    return dict(label.split(". ", 1) for label in told)


def preference_run(top, job: str, **logged: float):
    """The folder of a finished preference run of two steps, whose steps log `logged` too."""
    inputs = Inputs(base_model=str(top / "base"), train=RowSource(name="pairs", path=str(top / "rows.jsonl")))
    folder = top / job
    compose([f"job={job}", "gateway=off", "train.seed=1"]).spec("run", inputs, created="now").save(folder)
    journal(folder, JobState.VALIDATING, JobState.RUNNING, JobState.COMPLETED)
    step = {"loss": 0.5, "preference": 0.75, "accuracy": 0.75, "learning_rate": 0.1, "grad_norm": 1.0, **logged}
    held_out = [{"step": 0, "eval/loss": 0.7, "eval/preference": 0.46}, {"step": 2, "eval/loss": 0.2}]
    held_out[1]["eval/preference"] = 0.995
    lines(folder / "metrics.jsonl", [held_out[0], {"step": 1, **step}, {"step": 2, **step}, held_out[1]])
    return folder


def test_a_dpo_run_has_its_curves_in_units_of_pairs(run):
    rewards = {"margin": 3.0, "chosen_reward": 2.0, "rejected_reward": -1.0, "kl_k3": 0.25}
    folder = preference_run(run.parent, "dpo", **rewards, chosen_logprob=-5.0, rejected_logprob=-9.0)
    drawn = charts(folder)
    assert list(drawn) == [
        "Training loss", "Held-out loss", "Held-out preference", "Margin", "Accuracy", "Chosen reward",
        "Rejected reward", "Log-prob of chosen answers", "Log-prob of rejected answers", "Distance from the reference",
        "Learning rate", "Gradient norm",
    ]  # fmt: skip
    assert "0.5 at first, 0.5 at last (mean over pairs)" in drawn["Training loss"]
    assert "Best: 0.995 at step 2" in drawn["Held-out preference"] and "Best: 0.2 at step 2" in drawn["Held-out loss"]
    assert "3 at first" in drawn["Margin"] and "-9 at first" in drawn["Log-prob of rejected answers"]
    text = Tags(page(folder)).text
    assert "46.0% → 99.5%" in text and "dpo of accounts/local/models/tiny" in text
    assert "nats per trained token" not in text


def test_an_orpo_run_has_odds_and_no_rewards(run):
    folder = preference_run(run.parent, "orpo", log_odds=1.5)
    drawn = charts(folder)
    assert "1.5 at first" in drawn["Log odds ratio"] and not {"Margin", "Chosen reward"} & set(drawn)
    assert "orpo of accounts/local/models/tiny" in Tags(page(folder)).text


def test_a_supervised_runs_losses_are_per_token(run):
    finished(run)
    drawn = charts(run)
    assert "(nats per trained token)" in drawn["Training loss"] and "(nats per trained token)" in drawn["Held-out loss"]
    assert "pairs" not in Tags(page(run)).text and "sft of toy" in Tags(page(run)).text


def test_hostile_text_is_text(run):
    finished(run, text=HOSTILE)
    (run / "error.txt").write_text(HOSTILE)
    html = page(run)
    tags = Tags(html)
    assert {"script", "img", "iframe", "object", "a"}.isdisjoint(tag for tag, _ in tags.tags)
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert tags.text.count("<script>alert(1)</script>") >= 10
    assert "49" not in re.findall(r"\{\{.*?\}\}|49&#", html)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", html)
    assert "\\u202e" in tags.text


def test_the_page_loads_nothing_and_says_so(run):
    finished(run, text=HOSTILE)
    tags = Tags(page(run)).tags
    policy = [attributes["content"] for _, attributes in tags if attributes.get("http-equiv")]
    assert policy == [CSP]
    assert CSP.startswith("default-src 'none'") and "script" not in CSP
    addresses = [value for _, one in tags for name, value in one.items() if name in ("src", "href", "xlink:href")]
    assert addresses == ["data:,"]
    styles = re.search(r"<style>(.*?)</style>", page(run), re.S)
    assert styles and "url(" not in styles[1] and "@import" not in styles[1]


def test_a_folder_with_a_description_alone(run):
    text = Tags(page(run)).text
    for words in ("creating", "No held-out row", "No step", "There is no ledger", "No environment", "None on disk"):
        assert words in text, words
    assert "No lineage.json was written" in text


def test_a_failed_run_shows_its_message_and_traceback(run):
    journal(run, JobState.VALIDATING, JobState.FAILED, message="ValueError: no")
    (run / "error.txt").write_text("Traceback\n" + "x" * 20_000 + "\nValueError: no\n")
    html = page(run)
    text = Tags(html).text
    assert "failed" in text and f"python -m trainer resume {run}" in text
    assert "[...]" in text and len(html) < 60_000
    assert text.index("error.txt") < text.index("Answers before")


def test_a_run_that_died_without_a_word_is_interrupted(run):
    journal(run, JobState.VALIDATING, JobState.RUNNING)
    (run / "hang.txt").write_text("Thread 1: waits\n")
    text = Tags(page(run)).text
    assert "running (interrupted)" in text and "Thread 1: waits" in text


@pytest.mark.parametrize("name", ["ledger.json", "samples.json", "environment.json", "lineage.json", "confession.json"])
def test_a_damaged_file_is_named_and_the_rest_is_told(run, name):
    finished(run)
    (run / name).write_text('{"a": [')
    text = Tags(page(run)).text
    assert f"{name}: cannot be read" in text and "Training loss" in text


@pytest.mark.parametrize(
    "content", ["[]", '"x"', '{"before": 3, "totals": 4, "attempts": 5}', '{"after": [1], "data": []}']
)
@pytest.mark.parametrize("name", ["ledger.json", "samples.json", "environment.json", "lineage.json", "estimate.json"])
def test_json_of_another_shape_is_borne(run, name, content):
    finished(run)
    (run / name).write_text(content)
    assert "Training loss" in page(run)


def test_a_damaged_journal_costs_the_state_alone(run):
    finished(run)
    (run / "sync.jsonl").write_text("not json\n")
    text = Tags(page(run)).text
    assert "sync.jsonl: cannot be read" in text and "unspecified" in text and "Training loss" in text


def test_a_damaged_checkpoint_is_named(run):
    finished(run)
    (run / "checkpoints/step-10/manifest.json").write_text("{")
    assert "manifest.json cannot be read" in Tags(page(run)).text


def test_a_torn_line_is_counted_and_a_repeated_step_stands_once(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 1, "loss": 3}\n[1]\n{"step": 2, "lo')
    text = Tags(page(run)).text
    assert "metrics.jsonl: 2 lines cannot be read" in text
    assert "3 → 3" in text


def test_numbers_that_are_not_finite_do_not_stop_the_page(run):
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 2, "eval/loss": NaN}\n'
    )
    assert "1 points are not finite" in Tags(page(run)).text


def test_a_hundred_thousand_steps_stay_a_small_page(run):
    lines(run / "metrics.jsonl", [{"step": s, "loss": 1 + s % 7, "grad_norm": 1.0} for s in range(1, 100_001)])
    html = page(run)
    assert len(html) < 200_000
    assert "100,000 points" in html and "the lowest and the highest point of each of 300 buckets" in html


def test_the_output_models_files_have_their_digests(run):
    finished(run)
    html = page(run)
    manifest = json.loads((run / "checkpoints/step-10/manifest.json").read_text())
    linked = manifest["files"]["weights/adapter_config.json"]["sha256"]
    assert html.count(linked) >= 2


def test_a_changed_description_is_noted(run):
    (run / "lineage.json").write_text(json.dumps({"run_json": {"sha256": "0" * 64}, "data": []}))
    assert "run.json has changed" in Tags(page(run)).text


def test_attempts_that_differ_are_told(run):
    attempts = [{"started": "a", "python": "3.11", "packages": {}}, {"started": "b", "python": "3.12", "packages": {}}]
    (run / "environment.json").write_text(json.dumps({"attempts": attempts}))
    assert "Attempt 1 of 2 (started a) ran with other python." in Tags(page(run)).text


def test_no_run_no_page(tmp_path):
    with pytest.raises(UsageError, match=r"no run\.json"):
        write_report(tmp_path)


def test_show_writes_it_again_and_prints_the_path(run, capsys):
    import argparse

    assert show.run(argparse.Namespace(run=str(run), report=True)) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert [path.name for path in run.glob("*report*")] + [path.name for path in run.glob(".report*")] == [
        "report.html"
    ]


def test_a_report_that_fails_is_told_and_fails_nothing(tmp_path, capsys):
    assert beside("report.html", lambda: write_report(tmp_path)) is None
    assert capsys.readouterr().err.startswith("report.html was not written: UsageError:")


def test_the_page_needs_no_tensor_library():
    words = "import sys, trainer.report_page; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
