"""Stand-in for eval_protocol.typed_interface: the decorator `reward_function`."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

import functools
import inspect
import typing

from eval_protocol.missing import attribute
from eval_protocol.models import EvaluateResult, Message


def reward_function(_func=None, *, mode="pointwise", resources=None, **_options):
    """Messages become `Message` where the function's annotation says so; the return is made an `EvaluateResult`."""
    if resources:
        raise ValueError(
            "reward_function(resources=...) is not in the stand-in; name eval-protocol in requirements.txt"
        )

    def decorate(function):
        signature = inspect.signature(function)
        if not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
            raise ValueError(f"Function '{function.__name__}' must accept **kwargs parameter.")
        wants = {name for name, one in signature.parameters.items() if _wants_messages(one.annotation)}

        def prepared(arguments, keywords):
            bound = signature.bind_partial(*arguments, **keywords)
            for name in wants & bound.arguments.keys():
                bound.arguments[name] = _messages(bound.arguments[name])
            return bound.args, bound.kwargs

        if inspect.iscoroutinefunction(function):

            async def call(*arguments, **keywords):
                args, kwargs = prepared(arguments, keywords)
                return _checked(await function(*args, **kwargs), mode)

        else:

            def call(*arguments, **keywords):
                args, kwargs = prepared(arguments, keywords)
                return _checked(function(*args, **kwargs), mode)

        wrapped = functools.wraps(function)(call)
        wrapped._reward_function_mode = mode
        return wrapped

    return decorate if _func is None else decorate(_func)


def _wants_messages(annotation):
    if isinstance(annotation, str):
        return "List[Message]" in annotation or "list[Message]" in annotation
    if Message in typing.get_args(annotation) and typing.get_origin(annotation) is list:
        return True
    return any(_wants_messages(inner) for inner in typing.get_args(annotation) if inner is not type(None))


def _messages(value):
    if isinstance(value, dict):
        return [Message.model_validate(value)]
    if isinstance(value, str):
        return [Message(role="system", content=value)]
    return value if value is None else [Message.model_validate(one) for one in value]


def _checked(returned, mode):
    if mode == "batch":
        return [EvaluateResult.model_validate(one) for one in returned]
    return EvaluateResult.model_validate(returned)


__getattr__ = attribute(__name__)
