"""Stand-in for eval_protocol.pytest: `evaluation_test` marks a function with its settings; rollouts happen elsewhere.

Here the rows already have their answers, so that the processors only carry their names.
"""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

import functools
import inspect

from eval_protocol.missing import attribute
from eval_protocol.models import EvaluationRow

_MODES = ("pointwise", "groupwise", "all")
_ONE_ROW = 1


class RolloutProcessor:
    """Base of the processors."""

    def __init__(self, *_, **__):
        pass


class SingleTurnRolloutProcessor(RolloutProcessor):
    """One answer a row."""


class NoOpRolloutProcessor(RolloutProcessor):
    """Rows as they are."""


class RolloutProcessorConfig:
    """Settings of a processor."""

    def __init__(self, **settings):
        vars(self).update(settings)


class ExceptionHandlerConfig(RolloutProcessorConfig):
    """What rollouts retry; no rollout happens here."""


class BackoffConfig(RolloutProcessorConfig):
    """How rollouts wait; no rollout happens here."""


def default_dataset_adapter(rows):
    """Rows as they are."""
    return [EvaluationRow(**row) for row in rows]


def evaluation_test(*, mode="pointwise", dataset_adapter=default_dataset_adapter, preprocess_fn=None,
                    evaluation_test_kwargs=None, **settings):  # fmt: skip
    """Called with a row (or a list of rows, where the mode takes lists), the function is run on it."""
    if mode not in _MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(_MODES)}")
    given = next((one for one in evaluation_test_kwargs or () if one), {})

    def decorate(function):
        if inspect.iscoroutinefunction(function):

            async def call(*arguments, **keywords):
                return await function(*arguments, **{**given, **keywords})

        else:

            def call(*arguments, **keywords):
                return function(*arguments, **{**given, **keywords})

        wrapped = functools.wraps(function)(call)
        wrapped.__test__ = True
        wrapped._origin_func = function
        wrapped._metainfo = {"mode": mode}
        wrapped.__ep_params__ = _Parameters(
            mode=mode, dataset_adapter=dataset_adapter, preprocess_fn=preprocess_fn, **settings
        )
        return wrapped

    return decorate


class _Parameters:
    def __init__(self, **settings):
        vars(self).update(settings)


__getattr__ = attribute(__name__)
