"""The engine of one process: a transformers model on the CPU or one GPU, with any number of adapters on it.

Datums are packed into micro-batches without padding and attention works row by row, or they are padded in buckets of
about one length, where attention is torch's plain SDPA; only trained positions go through the head. Calls hold one
lock, so threads may share an engine; sampling then waits for training calls. Not guaranteed: the same dropout masks
under another layout or split into micro-batches; a router's auxiliary loss (it is left out).
T tokens of a micro-batch, K of them through the head, N positions with a log-prob, H hidden size, V vocabulary.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from trainer.data.buckets import BOUNDS
from trainer.data.datum import Datum
from trainer.engine import sampling
from trainer.engine.adapters import Adapters, copy_into, is_adapter, read_config
from trainer.engine.admission import check_data, check_loss, check_sampling, check_sequence, check_step
from trainer.engine.attention import Mode, packed, register
from trainer.engine.base import AdamParams, Completion, ForwardResult, LoraSpec, SamplingParams
from trainer.engine.batching import LEAST_SHARED, MicroBatch, micro_batches, padded_batches
from trainer.engine.fused import fuse
from trainer.engine.head import Head
from trainer.engine.optimizer import MasterAdamW
from trainer.loss_specs import find_spec
from trainer.losses.table import Loss, find_loss
from trainer.runs import EngineSettings

_TOKENS = {"cpu": 2048, "cuda": 16_384, "mps": 4096}  # of a micro-batch: fits caches on a CPU, fills a GPU
_FUSED_TOKENS = 4096  # fused layers divide it into chunks themselves, and keep less for the backward pass
_PARITY = {torch.float32: 2e-3, torch.bfloat16: 0.25}  # nats; a head that does something else is further off
_NAMED = 5  # missing weights that are named
_MERGE = {":sum": sum, ":min": min, ":max": max}


@dataclass(eq=False)
class _Model:
    """One trained model: its adapter's internal name (None = no adapter), optimizer and counters."""

    adapter: str | None = None
    optimizer: MasterAdamW | None = None
    dropouts: Sequence[nn.Module] = ()
    rng: list[Tensor] = field(default_factory=list)
    seq: int = 0


class LocalEngine:
    """`Engine` in this process. `decode` (ids to text) is only needed for stop strings.

    `base` is a folder or hub id. Weights are loaded in `settings.dtype`; adapters train in fp32, and so does a full
    model (fp32 masters beside bf16 weights). Raises `ValueError` for a model whose numbers this engine would get wrong:
    at load the log-probs of a few short rows, laid out together, are compared with the model's own logits.
    """

    def __init__(
        self,
        base: str | Path,
        settings: EngineSettings | None = None,
        *,
        revision: str | None = None,
        decode: Callable[[list[int]], str] | None = None,
        micro_batch_tokens: int | None = None,
    ) -> None:
        settings = settings or EngineSettings()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.device = _device(settings.device)
        self.dtype = getattr(torch, settings.dtype)
        self._padded = settings.laid_out == "padded"
        self._mode: Mode = "sdpa" if self._padded or settings.attention == "sdpa" else "varlen"
        self._base_name = str(base)
        self._lm = _load(str(base), self.dtype, revision).to(self.device)  # pyright: ignore[reportArgumentType]
        self._lm.requires_grad_(False).eval()
        self._decoder: Any = self._lm.get_decoder()
        self._fused = self._mode == "varlen" and fuse(self._lm)
        usual = _FUSED_TOKENS if self._fused else _TOKENS.get(self.device.type, _TOKENS["cpu"])
        self._tokens = micro_batch_tokens or usual
        bounds = BOUNDS.get(self.device.type, BOUNDS["cpu"])
        self._bounds = replace(bounds, tokens=micro_batch_tokens or bounds.tokens)
        kernels = self.device.type == "cuda" and self.dtype != torch.float32
        self._share = LEAST_SHARED if self._mode == "varlen" and not kernels else 0  # these do not know `Rows.shared`
        self._head = Head.of(self._lm, settings.head_tile)
        config = self._lm.config.get_text_config()
        self.vocabulary = self._head.weight_VH.shape[0]
        self.context_length = int(config.max_position_embeddings)
        self.stop_ids = _stop_ids(self._lm)
        self.parameter_count = sum(parameter.numel() for parameter in self._lm.parameters())
        self._sampler = sampling.Sampler(self._decoder, self._head, config, self.stop_ids, self.context_length, decode)
        self._checkpointed = _checkpointed_layers(self._lm) if settings.gradient_checkpointing else []
        self._models: dict[str, _Model] = {}
        self._lock = threading.RLock()
        self._probe()
        self._adapters = Adapters(self._lm, self._base_name, revision)

    # Models

    def create_model(
        self,
        model: str,
        *,
        lora: LoraSpec | None,
        seed: int = 0,
        base_only: bool = False,
        warm_start: Path | None = None,
    ) -> None:
        with self._lock:
            if model in self._models:
                raise ValueError(f"model: {model!r} exists already; models are {sorted(self._models)}")
            if base_only:
                if lora is not None or warm_start is not None:
                    raise ValueError(f"model {model!r}: base_only is the bare base, give no lora and no warm_start")
                self._refuse_beside_full(model)
                self._models[model] = _Model()
            elif lora is not None or (warm_start is not None and is_adapter(warm_start)):
                self._refuse_beside_full(model)
                self._models[model] = self._new_adapter(lora, seed, warm_start)
            else:
                self._models[model] = self._new_full(model, warm_start)

    def _refuse_beside_full(self, model: str) -> None:
        full = [name for name, other in self._models.items() if other.adapter is None and other.optimizer]
        if full:
            raise ValueError(f"model {model!r}: {full[0]!r} trains all parameters of this base; use another engine")

    def _new_adapter(self, lora: LoraSpec | None, seed: int, warm_start: Path | None) -> _Model:
        config = None if lora is None else self._adapters.config_of(lora)
        if warm_start is not None:
            stored = read_config(warm_start)  # refuses before anything is attached
            config = config or stored
        assert config is not None
        adapter = self._adapters.attach(config, seed=seed)
        if warm_start is not None:
            self._adapters.load(adapter, warm_start)
        optimizer = MasterAdamW(self._adapters.parameters(adapter), decay_vectors=True)
        dropouts = [layer for layer in self._adapters.dropouts(adapter) if isinstance(layer, nn.Dropout)]
        return _Model(adapter, optimizer, dropouts, self._fresh_rng(seed))

    def _new_full(self, model: str, warm_start: Path | None) -> _Model:
        if self._models:
            raise ValueError(
                f"model {model!r}: training all parameters would change the base under {sorted(self._models)}; "
                "use another engine"
            )
        if warm_start is not None:
            self._load_full(warm_start)
        self._lm.requires_grad_(True)
        return _Model(optimizer=MasterAdamW(dict(self._lm.named_parameters()), decay_vectors=False))

    def _load_full(self, folder: Path) -> None:
        parameters = dict(self._lm.named_parameters())
        copy_into(parameters, dict(_load(str(folder), self.dtype, None).named_parameters()), folder)

    def _fresh_rng(self, seed: int) -> list[Tensor]:
        """Random states of a new model's dropout: the CPU's, and the GPU's where there is one."""
        generators = [torch.Generator().manual_seed(seed)]
        if self.device.type == "cuda":
            generators.append(torch.Generator(self.device).manual_seed(seed))
        return [generator.get_state() for generator in generators]

    def _find(self, model: str) -> _Model:
        if model not in self._models:
            raise KeyError(f"model: {model!r} does not exist; models are {sorted(self._models)}")
        return self._models[model]

    def _trained(self, model: str) -> tuple[_Model, MasterAdamW]:
        found = self._find(model)
        if found.optimizer is None:
            raise ValueError(
                f"model {model!r} is base_only: it has log-probs and samples, but nothing to train or save"
            )
        return found, found.optimizer

    # The four primitives

    @torch.no_grad()
    def forward(
        self,
        model: str,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        loss_config: Mapping[str, float] | None = None,
        seq: int | None = None,
    ) -> ForwardResult:
        config = dict(loss_config or {})
        with self._lock:
            found, chosen = self._find(model), find_loss(loss, config)
            together = self._admit(data, loss)
            found.seq = check_sequence(model, found.seq, seq)
            self._adapters.switch(found.adapter)
            logprobs, metrics, padding = _empty(data), _Metrics(), 0
            for batch in self._laid(data, together, every_position=True, share=self._share):
                logprobs_N = batch.logprobs(self._hidden(batch), self._head.logprobs)
                batch.scatter(logprobs_N, logprobs)
                assert batch.trained_N is not None
                metrics.add(*chosen.function(logprobs_N[batch.trained_N], batch.fields, config))
                padding += batch.padding
            return ForwardResult(logprobs, metrics.merged(), padding)

    def forward_backward(
        self,
        model: str,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        loss_config: Mapping[str, float] | None = None,
        seq: int | None = None,
    ) -> ForwardResult:
        config = dict(loss_config or {})
        with self._lock:
            found, optimizer = self._trained(model)
            chosen = find_loss(loss, config)
            together = self._admit(data, loss)
            found.seq = check_sequence(model, found.seq, seq)
            self._adapters.switch(found.adapter)
            logprobs, metrics, padding = _empty(data), _Metrics(), 0
            share = self._share if together == 2 else 0
            with self._training(found):
                for batch in self._laid(data, together, every_position=False, share=share):
                    if batch.targets_U.shape[0]:
                        padding += batch.padding
                        logprobs_N, value = self._backward(batch, chosen, config)
                        batch.scatter(logprobs_N, logprobs)
                        metrics.add(*value)
                    else:  # nothing is learnt here, but a loss may count the datums
                        metrics.add(*chosen.function(batch.fields.weights_N, batch.fields, config))
                    optimizer.gather()
            return ForwardResult(logprobs, metrics.merged(), padding)

    def _admit(self, data: Sequence[Datum], loss: str) -> int:
        """Check the data for `loss`; returns how many neighbours must stay together."""
        spec = find_spec(loss)
        check_data(data, self.vocabulary, self.context_length)
        check_loss(data, loss, spec)
        return 2 if spec.pairs else 1

    def _laid(self, data: Sequence[Datum], together: int, *, every_position: bool, share: int) -> Iterator[MicroBatch]:
        how: dict[str, Any] = {"every_position": every_position, "device": self.device, "together": together}
        if self._padded:
            return padded_batches(data, self._bounds, **how)
        return micro_batches(data, self._tokens, share=share, **how)

    def optim_step(
        self, model: str, params: AdamParams, *, denominator: float, seq: int | None = None
    ) -> dict[str, float]:
        with self._lock:
            found, optimizer = self._trained(model)
            check_step(params, denominator, accumulated=optimizer.accumulated)
            found.seq = check_sequence(model, found.seq, seq)
            return {"grad_norm": optimizer.step(params, denominator)}

    def clear_gradient(self, model: str) -> None:
        with self._lock:
            self._trained(model)[1].clear()

    def sample(self, model: str, prompts: Sequence[np.ndarray], params: SamplingParams) -> list[list[Completion]]:
        with self._lock, torch.no_grad():
            self._check_sampling(prompts, params)
            self._adapters.switch(self._find(model).adapter)
            return sampling.sample(self._sampler, prompts, params)

    def stream(self, model: str, prompt: np.ndarray, params: SamplingParams) -> Iterator[Completion]:
        """Each item is one token; `finish` means something in the last only. Training in between shows in the rest."""
        found = self._find(model)
        self._check_sampling([prompt], params)
        return self._streamed(found, prompt, params)

    def _streamed(self, found: _Model, prompt: np.ndarray, params: SamplingParams) -> Iterator[Completion]:
        steps = sampling.steps(self._sampler, [prompt], replace(params, num_samples=1))
        while True:
            with self._lock, torch.no_grad():
                self._adapters.switch(found.adapter)
                step = next(steps, None)
            if step is None:
                return
            finish = "stop" if step.finish_B[0] == "stop" else "length"
            yield Completion(step.tokens_B, step.logprobs_B, step.sampling_logprobs_B, finish=finish)

    def _check_sampling(self, prompts: Sequence[np.ndarray], params: SamplingParams) -> None:
        check_sampling(
            prompts, params, vocabulary=self.vocabulary, context=self.context_length, decode=self._sampler.decode
        )

    def _hidden(self, batch: MicroBatch) -> Tensor:
        """Hidden states [K, H] of the tokens that go through the head."""
        extra: dict[str, Any] = {"trainer_rows": batch.rows} if self._mode == "varlen" else {}
        if self._fused:
            extra["trainer_keep"] = batch.head_K
        with nullcontext() if batch.rows is None else packed(batch.rows, self._mode):
            output = self._decoder(input_ids=batch.tokens_BT, position_ids=batch.positions_1T, use_cache=False, **extra)
        hidden_KH = output[0].flatten(0, 1)
        return hidden_KH if self._fused or batch.head_K is None else hidden_KH.index_select(0, batch.head_K)

    def _backward(
        self, batch: MicroBatch, loss: Loss, config: Mapping[str, float]
    ) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        """Gradient of one micro-batch's loss; returns its log-probs [N], and the loss with its metrics."""
        hidden_KH = self._hidden(batch)
        if loss.slopes is not None and batch.reads is None:
            slopes_N = loss.slopes(batch.fields, config)
            surrogate, logprobs_N = self._head.sloped(hidden_KH, batch.targets_U, slopes_N)
            surrogate.backward()
            return logprobs_N, loss.function(logprobs_N, batch.fields, config)
        logprobs_N = batch.logprobs(hidden_KH, self._head.logprobs)
        total, metrics = loss.function(logprobs_N, batch.fields, config)
        total.backward()
        return logprobs_N, (total.detach(), metrics)

    @contextmanager
    def _training(self, model: _Model) -> Iterator[None]:
        """Dropout of the model's adapter on, drawn from the model's own random state; layers checkpointed."""
        switched = [*model.dropouts, *self._checkpointed]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=bool(model.dropouts)):
            if model.dropouts:
                _set_rng(model.rng, self.device)
            for module in switched:
                module.training = True  # of this module alone: the base's own dropout stays off
            try:
                yield
            finally:
                for module in switched:
                    module.training = False
                if model.dropouts:
                    model.rng = _get_rng(self.device)

    # Files

    def save_weights(self, model: str, folder: Path) -> None:
        with self._lock:
            found, _ = self._trained(model)
            if found.adapter is not None:
                self._adapters.save(found.adapter, folder)
            else:
                self._lm.save_pretrained(folder)

    def save_state(self, model: str, folder: Path) -> None:
        """Write optimizer.safetensors and state.json. Raises `ValueError` between forward_backward and optim_step."""
        with self._lock:
            found, optimizer = self._trained(model)
            if optimizer.accumulated:
                raise ValueError(f"save_state: model {model!r} has a gradient under way; call optim_step first")
            folder.mkdir(parents=True, exist_ok=True)
            save_file(optimizer.state(), folder / "optimizer.safetensors")
            rng = [base64.b64encode(state.numpy().tobytes()).decode() for state in found.rng]
            state = {"version": 1, "steps": optimizer.steps, "seq": found.seq, "rng": rng}
            (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    def load_state(self, model: str, weights: Path, state: Path | None) -> None:
        with self._lock:
            found, optimizer = self._trained(model)
            if found.adapter is not None:
                self._adapters.load(found.adapter, weights)
            else:
                self._load_full(weights)
            optimizer.reset()
            if state is not None:
                document = json.loads((state / "state.json").read_text(encoding="utf-8"))
                optimizer.load(load_file(state / "optimizer.safetensors"), document["steps"])
                found.seq = document["seq"]
                decoded = [bytearray(base64.b64decode(text)) for text in document["rng"]]
                if len(decoded) == len(found.rng):  # another kind of device starts from the model's seed again
                    found.rng = [torch.frombuffer(buffer, dtype=torch.uint8) for buffer in decoded]

    @torch.no_grad()
    def _probe(self) -> None:
        """Compare our log-probs of rows laid out with the model's own logits; raise `ValueError` when they differ."""
        generator = np.random.default_rng(0)
        lengths = [min(n, self.context_length) for n in (5, 9, 7)]
        ids = [generator.integers(0, self.vocabulary, n + 1) for n in lengths]
        ids[1][: lengths[0] - 2] = ids[0][: lengths[0] - 2]
        data = [Datum(row[:-1], row[1:], np.ones(len(row) - 1, dtype=np.float32)) for row in ids]
        ours = _empty(data)
        for batch in self._laid(data, 1, every_position=True, share=min(self._share, 1)):
            batch.scatter(batch.logprobs(self._hidden(batch), self._head.logprobs), ours)
        for row, mine in zip(ids, ours, strict=True):
            row_N = torch.from_numpy(row).to(self.device)
            logits_NV = self._lm(input_ids=row_N[None, :-1], use_cache=False).logits[0].float()
            theirs = torch.log_softmax(logits_NV, -1).gather(1, row_N[1:, None])[:, 0].cpu().numpy()
            if not np.isfinite(theirs).all():
                raise ValueError(
                    f"{self._base_name}: its log-probs are not finite numbers: its weights hold NaN or infinity, or "
                    "are too large for engine.dtype; give a sound model"
                )
            worst = float(np.abs(mine - theirs).max())
            if not worst <= _PARITY[self.dtype]:
                raise ValueError(
                    f"{self._base_name}: log-probs computed here differ from {type(self._lm).__name__}'s own by "
                    f"{worst:.3g} nats; its head or its attention does something that this engine does not know"
                )


class _Metrics:
    """Metrics of a call's micro-batches, put together by the reduction at the end of each name."""

    def __init__(self) -> None:
        self._found: dict[str, list[Tensor]] = {}

    def add(self, total: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Metrics of one micro-batch and its loss."""
        for name, value in {"loss:sum": total, **metrics}.items():
            self._found.setdefault(name, []).append(value.detach())

    def merged(self) -> dict[str, float]:
        """Floats, one device round trip for each name."""
        merged = {name: _MERGE[name[-4:]](torch.stack(values).tolist()) for name, values in self._found.items()}
        return {"loss:sum": 0.0, **merged}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _load(path: str, dtype: torch.dtype, revision: str | None) -> PreTrainedModel:
    """The model with all its weights. Raises `ValueError` for files that do not have them, whole and of its shapes."""
    disable_progress_bar()  # its bars would break into the run's own output
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            revision=revision or "main",
            attn_implementation=register(),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise  # of the machine, not of the files
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"model {path!r}: its weights cannot be loaded ({words[0]}); it takes whole *.safetensors files of the "
            "shapes that config.json says (pickled weights are never read)"
        ) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # they would be drawn at random
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"model {path!r}: its files lack {', '.join(missing[:_NAMED])}{more}, which its config.json asks for; give "
            "the whole model"
        )
    return model


def _stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    found: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, Iterable) else [] if ids is None else [ids])
    return tuple(sorted(found))


def _checkpointed_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Switch on non-reentrant checkpointing; it acts on layers in training mode, which the engine turns on and off."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"gradient_checkpointing: {type(model).__name__} has no layers that support it; turn it off")
    # The newer of transformers' two names for this; the older one warns where both exist.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return layers


def _empty(data: Sequence[Datum]) -> list[np.ndarray]:
    return [np.zeros(datum.length, dtype=np.float32) for datum in data]


def _get_rng(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_rng(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
