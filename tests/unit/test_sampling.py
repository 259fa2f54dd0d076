"""Choosing a token against brute force (trap 5), and generation invariant to padding and batch (trap 3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conformance.tiny_models import ARCHITECTURES, CONTEXT, VOCABULARY, make_model
from trainer.engine.base import Completion, SamplingParams
from trainer.engine.local import LocalEngine
from trainer.engine.sampling import choose
from trainer.runs import EngineSettings

LOGITS_V = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -3.0])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    folder = make_model(tmp_path_factory.mktemp(request.param), request.param)
    engine = LocalEngine(folder, EngineSettings(device="cpu"))
    engine.create_model("m", lora=None, base_only=True)
    return engine


def grid(params: SamplingParams, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens for `count` evenly spaced uniform numbers: their frequencies are exact to 1 / count."""
    uniforms_B = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return choose(LOGITS_V.expand(count, -1), params, uniforms_B)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(), 8),
        (SamplingParams(temperature=0.5), 8),
        (SamplingParams(top_k=3), 3),
        (SamplingParams(top_p=0.7), 2),  # probabilities 0.531, 0.195, 0.118, ...
        (SamplingParams(top_p=0.75), 3),
        (SamplingParams(top_p=0.5), 1),
        (SamplingParams(top_k=5, top_p=0.9, temperature=2.0), 5),
    ],
)
def test_frequencies_equal_the_reported_distribution(params: SamplingParams, kept: int) -> None:
    tokens, logprobs, sampling_logprobs = grid(params)
    probs_V = torch.bincount(tokens, minlength=8) / len(tokens)
    support = probs_V.nonzero()[:, 0].tolist()
    assert support == list(range(len(support))), "the most likely tokens are kept"
    assert len(support) == kept
    for token in support:
        first = int((tokens == token).nonzero()[0])
        assert float(sampling_logprobs[first].exp()) == pytest.approx(float(probs_V[token]), abs=2e-4)
        assert float(logprobs[first]) == pytest.approx(float(LOGITS_V.log_softmax(-1)[token]), abs=1e-6)


def test_expected_ratio_is_one_only_with_the_sampled_distributions_logprobs() -> None:
    full_V = LOGITS_V.log_softmax(-1)
    _, logprobs, sampling_logprobs = grid(SamplingParams(top_p=0.9))
    kept = full_V.exp().cumsum(0) - full_V.exp() < 0.9
    share = full_V.exp()[kept].sum()
    assert float((logprobs - sampling_logprobs).exp().mean()) == pytest.approx(float(share), abs=1e-3)
    np.testing.assert_allclose(sampling_logprobs, logprobs - share.log(), atol=1e-6)
    _, raw, plain = grid(SamplingParams())
    np.testing.assert_allclose(raw, plain)


def test_greedy_takes_the_most_likely_and_reports_the_models_logprob() -> None:
    tokens, logprobs, sampling_logprobs = choose(LOGITS_V[None], SamplingParams(temperature=0), torch.tensor([0.99]))
    assert tokens.tolist() == [0] and sampling_logprobs.tolist() == [0.0]
    assert float(logprobs) == pytest.approx(float(LOGITS_V.log_softmax(-1)[0]))


def prompts_of(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, VOCABULARY, length) for length in lengths]


def assert_same(left: Completion, right: Completion) -> None:
    assert left.tokens.tolist() == right.tokens.tolist() and left.finish == right.finish
    np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-5)
    np.testing.assert_allclose(left.sampling_logprobs, right.sampling_logprobs, atol=1e-5)


def test_padding_and_neighbours_do_not_matter(engine: LocalEngine) -> None:
    prompts = prompts_of(3, 11, 1, 30)
    params = SamplingParams(max_new_tokens=12, num_samples=2, seed=5, stop_ids=(1, 7, 9, 11, 13))
    together = engine.sample("m", prompts, params)
    for prompt, completions in zip(prompts, together, strict=True):
        for left, right in zip(completions, engine.sample("m", [prompt], params)[0], strict=True):
            assert_same(left, right)


def test_context_limits_the_new_tokens(engine: LocalEngine) -> None:
    params = SamplingParams(max_new_tokens=50, temperature=0, stop_ids=())
    (short,), (long,) = engine.sample("m", prompts_of(CONTEXT - 3, CONTEXT - 10), params)
    assert (len(short.tokens), len(long.tokens)) == (3, 10) and short.finish == long.finish == "length"
    with pytest.raises(ValueError, match="room for one token"):
        engine.sample("m", prompts_of(CONTEXT), params)


def test_greedy_equals_transformers_generate(engine: LocalEngine) -> None:
    (prompt,) = prompts_of(6)
    ours = engine.sample("m", [prompt], SamplingParams(max_new_tokens=20, temperature=0))[0][0]
    theirs = engine._lm.generate(  # pyright: ignore
        torch.from_numpy(prompt)[None], max_new_tokens=20, do_sample=False, pad_token_id=0
    )[0, 6:]
    assert ours.tokens.tolist() == theirs.tolist()


def test_chunks_bound_the_cache_and_keep_the_order(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, params = prompts_of(9, 2, 5, 7), SamplingParams(max_new_tokens=6, seed=2)
    whole = engine.sample("m", prompts, params)
    monkeypatch.setattr("trainer.engine.sampling._CHUNK_TOKENS", 20)
    for left, right in zip(whole, engine.sample("m", prompts, params), strict=True):
        assert_same(left[0], right[0])
