"""Stand-in for eval_protocol.models: plain classes with the same fields, defaults and accessors.

Fields are read from class annotations. Values are coerced as far as evaluators rely on it: dicts become the declared
model, alone, in a list or as values of a dict; a number is checked to be one. Unknown fields are kept where the real
class keeps them, else passed over, as there.
"""

# ruff: noqa: RUF012
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

import copy
import json
from datetime import datetime, timezone
from enum import Enum

from eval_protocol.missing import attribute

_REQUIRED = object()


class _Model:
    """Keyword arguments to attributes. `_fields`: name -> (default or factory, coerce or None)."""

    _fields = {}
    _extra = False

    def __init__(self, **values):
        for name, (default, coerce) in self._fields.items():
            if name in values:
                value = values.pop(name)
                value = coerce(value) if coerce is not None and value is not None else value
            elif default is _REQUIRED:
                raise ValueError(f"{type(self).__name__}: {name} is required")
            else:
                value = default() if callable(default) else default
            setattr(self, name, value)
        if self._extra:
            for name, value in values.items():
                setattr(self, name, value)

    @classmethod
    def model_validate(cls, value):
        """From a dict, or the thing itself."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"{cls.__name__}: cannot be made from {type(value).__name__}")
        return cls(**value)

    @classmethod
    def model_validate_json(cls, text):
        """From JSON."""
        return cls.model_validate(json.loads(text))

    @property
    def model_extra(self):
        """Fields that are not declared."""
        return {name: value for name, value in vars(self).items() if name not in self._fields}

    def model_dump(self, *, exclude_none=False, mode="python", exclude=(), **_):
        """As a dict, models within it too."""
        names = [name for name in vars(self) if name not in exclude]
        found = {name: _plain(getattr(self, name), exclude_none, mode) for name in names}
        return {name: value for name, value in found.items() if not (exclude_none and value is None)}

    dict = model_dump

    def model_dump_json(self, *, indent=None, **options):
        """As JSON."""
        return json.dumps(self.model_dump(mode="json", **options), indent=indent)

    def model_copy(self, *, update=None, deep=False):
        """A copy, with some fields changed."""
        found = copy.deepcopy(self) if deep else copy.copy(self)
        for name, value in (update or {}).items():
            setattr(found, name, value)
        return found

    def get(self, name, default=None):
        """As a dict's."""
        return getattr(self, name, default)

    def keys(self):
        """As a dict's."""
        return list(vars(self))

    def values(self):
        """As a dict's."""
        return list(vars(self).values())

    def items(self):
        """As a dict's."""
        return list(vars(self).items())

    def __getitem__(self, name):
        if name not in vars(self):
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name):
        return name in vars(self)

    def __iter__(self):
        return iter(vars(self))

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def _plain(value, exclude_none, mode):
    if isinstance(value, _Model):
        return value.model_dump(exclude_none=exclude_none, mode=mode)
    if isinstance(value, dict):
        return {name: _plain(one, exclude_none, mode) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, exclude_none, mode) for one in value]
    if mode == "json" and isinstance(value, datetime):
        return value.isoformat()
    if mode == "json" and isinstance(value, Enum):
        return value.value
    return value


def _number(value):
    if isinstance(value, str):
        return float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float(value)


def _one(model):
    return model.model_validate


def _many(model):
    return lambda values: [model.model_validate(value) for value in values]


def _named(model):
    return lambda values: {name: model.model_validate(value) for name, value in values.items()}


class ChatCompletionContentPartTextParam(_Model):
    """A text within a message."""

    _fields = {"text": (_REQUIRED, None), "type": ("text", None)}


class ChatCompletionContentPartImageParam(_Model):
    """An image within a message."""

    _fields = {"type": ("image_url", None), "image_url": (_REQUIRED, None)}


def _part(value):
    if not isinstance(value, dict):
        return value
    image = value.get("type") == "image_url"
    return (ChatCompletionContentPartImageParam if image else ChatCompletionContentPartTextParam).model_validate(value)


def _content(value):
    return [_part(one) for one in value] if isinstance(value, list) else value


class FunctionCall(_Model):
    """Name and arguments (a JSON text) of a called function."""

    _fields = {"arguments": ("", None), "name": ("", None)}


class ChatCompletionMessageToolCall(_Model):
    """A call of a tool."""

    _fields = {"id": ("", None), "function": (FunctionCall, _one(FunctionCall)), "type": ("function", None)}


class Message(_Model):
    """A chat message."""

    _fields = {
        "role": (_REQUIRED, None), "content": ("", _content), "reasoning_content": (None, None), "name": (None, None),
        "tool_call_id": (None, None), "tool_calls": (None, _many(ChatCompletionMessageToolCall)),
        "function_call": (None, _one(FunctionCall)), "control_plane_step": (None, None), "weight": (None, None),
        "logprobs": (None, None),
    }  # fmt: skip


class MetricResult(_Model):
    """One named part of a score. `success` is reward-kit's older name of `is_score_valid`."""

    _fields = {
        "is_score_valid": (True, None), "score": (_REQUIRED, _number), "reason": ("", None), "data": (dict, None),
    }  # fmt: skip

    def __init__(self, **values):
        if "success" in values:
            values.setdefault("is_score_valid", values.pop("success"))
        super().__init__(**values)


class StepOutput(_Model):
    """The reward of one step."""

    _fields = {
        "step_index": (_REQUIRED, None), "base_reward": (_REQUIRED, _number), "terminated": (False, None),
        "control_plane_info": (None, None), "metrics": (dict, None), "reason": (None, None),
    }  # fmt: skip


class EvaluateResult(_Model):
    """What an evaluator says of a row."""

    _fields = {
        "score": (_REQUIRED, _number), "is_score_valid": (True, None), "reason": (None, None),
        "metrics": (dict, _named(MetricResult)), "step_outputs": (None, _many(StepOutput)), "error": (None, None),
        "trajectory_info": (None, None), "final_control_plane_info": (None, None), "agg_score": (None, None),
        "standard_error": (None, None),
    }  # fmt: skip


class Status(_Model):
    """How a rollout or an evaluation stands."""

    class Code(int, Enum):
        """google.rpc.Code, and eval-protocol's own."""

        OK = 0
        CANCELLED = 1
        UNKNOWN = 2
        INVALID_ARGUMENT = 3
        DEADLINE_EXCEEDED = 4
        NOT_FOUND = 5
        ALREADY_EXISTS = 6
        PERMISSION_DENIED = 7
        RESOURCE_EXHAUSTED = 8
        FAILED_PRECONDITION = 9
        ABORTED = 10
        OUT_OF_RANGE = 11
        UNIMPLEMENTED = 12
        INTERNAL = 13
        UNAVAILABLE = 14
        DATA_LOSS = 15
        UNAUTHENTICATED = 16
        FINISHED = 100
        RUNNING = 101
        SCORE_INVALID = 102
        RESPONSE_QUALITY_ERROR = 103

    _fields = {"code": (_REQUIRED, Code), "message": ("", None), "details": (list, None)}

    @classmethod
    def rollout_running(cls):
        """The rollout has not ended."""
        return cls(code=cls.Code.RUNNING, message="Rollout is running")

    @classmethod
    def rollout_finished(cls, *_, **__):
        """The rollout has ended."""
        return cls(code=cls.Code.FINISHED, message="Rollout finished")

    @classmethod
    def eval_finished(cls):
        """The evaluation has ended."""
        return cls(code=cls.Code.FINISHED, message="Evaluation finished")

    @classmethod
    def error(cls, error_message, details=None):
        """Something went wrong."""
        return cls(code=cls.Code.INTERNAL, message=error_message, details=details or [])

    rollout_error = error

    @classmethod
    def score_invalid(cls, message="Score is invalid", details=None):
        """The score does not count."""
        return cls(code=cls.Code.SCORE_INVALID, message=message, details=details or [])

    def is_running(self):
        """Whether it has not ended."""
        return self.code == self.Code.RUNNING

    def is_finished(self):
        """Whether it has ended well."""
        return self.code == self.Code.FINISHED

    def is_error(self):
        """Whether it has ended badly."""
        return self.code == self.Code.INTERNAL


class InputMetadata(_Model):
    """What is known of a row's input."""

    _extra = True
    _fields = {
        "row_id": (None, None), "completion_params": (dict, None), "dataset_info": (None, None),
        "session_data": (None, None),
    }  # fmt: skip


class ExecutionMetadata(_Model):
    """What is known of a row's rollout."""

    _extra = True
    _fields = dict.fromkeys(
        ("invocation_id", "experiment_id", "rollout_id", "run_id", "usage", "cost_metrics", "duration_seconds",
         "rollout_duration_seconds", "eval_duration_seconds", "experiment_duration_seconds", "extra", "finish_reason",
         "tool_call_count", "raw_output"), (None, None),
    )  # fmt: skip


class EvalMetadata(_Model):
    """What is known of an evaluation."""

    _extra = True
    _fields = {
        "name": ("", None), "description": (None, None), "version": ("", None), "status": (None, _one(Status)),
        "num_runs": (1, None), "aggregation_method": ("mean", None), "passed_threshold": (None, None),
        "passed": (None, None),
    }  # fmt: skip


class EvaluationThreshold(_Model):
    """When a test passes."""

    _fields = {"success": (_REQUIRED, _number), "standard_error": (None, None)}


def _now():
    return datetime.now(timezone.utc)  # noqa: UP017 - the real one's spelling, for older interpreters


class EvaluationRow(_Model):
    """A row: conversation, truth, and its evaluation. Unknown fields are kept."""

    _extra = True
    _fields = {
        "messages": (list, _many(Message)), "tools": (None, None),
        "input_metadata": (InputMetadata, _one(InputMetadata)),
        "rollout_status": (Status.rollout_running, _one(Status)), "ground_truth": (None, None),
        "evaluation_result": (None, _one(EvaluateResult)),
        "execution_metadata": (ExecutionMetadata, _one(ExecutionMetadata)), "created_at": (_now, None),
        "eval_metadata": (None, _one(EvalMetadata)), "pid": (None, None),
    }  # fmt: skip

    def is_trajectory_evaluation(self):
        """Whether steps were rewarded."""
        return bool(self.evaluation_result is not None and self.evaluation_result.step_outputs)

    def get_conversation_length(self):
        """How many messages."""
        return len(self.messages)

    def get_system_message(self):
        """The first system message, or an empty one."""
        return next((one for one in self.messages if one.role == "system"), Message(role="system", content=""))

    def get_assistant_messages(self):
        """The assistant's messages."""
        return [one for one in self.messages if one.role == "assistant"]

    def get_user_messages(self):
        """The user's messages."""
        return [one for one in self.messages if one.role == "user"]

    def last_assistant_message(self):
        """The assistant's last message, or None."""
        found = self.get_assistant_messages()
        return found[-1] if found else None

    def get_first_user_message(self):
        """The user's first message, or None."""
        found = self.get_user_messages()
        return found[0] if found else None

    def get_input_metadata(self, key, default=None):
        """One field of the input's metadata."""
        return getattr(self.input_metadata, key, default)


CompletionParams = dict
JSONType = object
__getattr__ = attribute(__name__)
