"""Watching a forward pass: which module is at work, and what it multiplies."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from laconic.measure.aten import HEAVY, PRODUCTS
from laconic.measure.counts import Counts, ModuleCount
from laconic.measure.operations import (
    EMBEDDINGS,
    Counted,
    attention_operation,
    is_known,
    operation_of,
)
from laconic.measure.values import parameters_of
from laconic.tensors.replacement import is_experts

QUESTIONS = 1000  # that are answered about values on the meta device


class Recorder(TorchDispatchMode):
    """Knows which module is at work, and writes down what is multiplied in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = dict(model.named_modules())
        self._open: list[str] = []
        self._quiet = 0  # inside of what is counted by its shape
        self._called: set[str] = set()
        self._questions = 0
        self._found: dict[str, list[Counted]] = defaultdict(list)
        self._strange: dict[str, dict[str, None]] = defaultdict(dict)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks the modules, in evaluation mode, and undoes all of it."""
        training = [module for module in self._modules.values() if module.training]
        fast = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)  # one operator hides all products
            for module in training:
                module.training = False
                stack.callback(setattr, module, "training", True)
            for path, module in self._modules.items():
                for handle in self._hooks(path, module):
                    stack.callback(handle.remove)
                if is_experts(module) and next(module.parameters()).device.type == "meta":
                    module.forward = _like_its_input  # routing needs numbers
                    stack.callback(delattr, module, "forward")
            stack.enter_context(_Attention(self))
            stack.enter_context(self)
            yield

    def counts(self) -> Counts:
        """What was seen."""
        by_module: dict[str, ModuleCount] = {}
        for path, module in self._modules.items():
            params, dense = parameters_of(module)
            found = self._found[path]
            if params or found:
                by_module[path] = ModuleCount(
                    type(module).__name__, params, dense, sum(each.macs for each in found),
                    sum(each.operation.macs for each in found),
                    tuple(each.operation for each in found),
                )  # fmt: skip
        return Counts(_shared_once(self._modules, by_module), self._uncounted())

    def add(self, counted: Counted) -> None:
        """Writes down an operation of the module at work."""
        path = self._open[-1] if self._open else ""
        self._found[path].append(counted)
        self._strange[path].update(dict.fromkeys(counted.unknown))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing inside is written down."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @property
    def listening(self) -> bool:
        """Whether products are written down at present."""
        return not self._quiet

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator and writes down what it multiplies."""
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        space, _, name = func._schema.name.partition("::")
        if name == "_local_scalar_dense" and self._may_be_told_no(args[0]):
            return False
        rule = PRODUCTS.get(name) if space == "aten" else None
        if rule is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if rule is not None:
            operation = rule(args, output)
            self.add(Counted(operation, operation.macs))
        elif name.startswith(HEAVY) or space not in ("aten", "prim", "prims"):
            path = self._open[-1] if self._open else ""
            self._strange[path][f"the operator {space}::{name}"] = None
        return output

    def _may_be_told_no(self, question: Tensor) -> bool:
        """Whether it is about numbers that are not there; not without end, for loops that wait."""
        absent = question.device.type == "meta" and question.dtype == torch.bool
        self._questions += absent
        return absent and self._questions <= QUESTIONS

    def _hooks(self, path: str, module: nn.Module) -> Iterator[Any]:
        known = is_known(module)

        def enter(module: nn.Module, args: Any) -> None:
            self._open.append(path)
            self._called.add(path)
            self._quiet += known

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._quiet -= known
            if known and not self._quiet and output is not None:
                self.add(operation_of(module, args, kwargs, output))
            self._open.pop()

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave, with_kwargs=True, always_call=True)

    def _uncounted(self) -> dict[str, str]:
        """Where work may be missing, and why."""
        reasons = {
            path: f"{', '.join(names)} is not counted"
            for path, names in self._strange.items()
            if names
        }
        by_hand = [p for p, m in self._modules.items() if isinstance(m, nn.MultiheadAttention)]
        counted = [path for path, found in self._found.items() if found]
        for path, module in self._modules.items():
            wide = any(p.ndim > 1 for p in module.parameters(recurse=False))
            inside = any(path.startswith(f"{outer}.") for outer in by_hand)
            if not wide or inside or path in reasons or isinstance(module, EMBEDDINGS):
                continue
            if path not in self._called:
                reasons[path] = "not called for this input, or its weight was used from outside"
            elif not any(p == path or not path or p.startswith(f"{path}.") for p in counted):
                reasons[path] = f"no product was seen in this {type(module).__name__}"
        return reasons


class _Attention(TorchFunctionMode):
    """Counts fused attention where it is called: kernels differ from device to device."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs a function of torch."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self._recorder.listening:
            return func(*args, **kwargs)
        query, key, value = (_argument(args, kwargs, i) for i in range(3))
        causal = kwargs.get("is_causal", args[5] if len(args) > 5 else False)
        operation = attention_operation(query, key, value, causal)
        self._recorder.add(Counted(operation, operation.macs))
        if query.device.type == "meta":
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        with self._recorder.quiet():
            return func(*args, **kwargs)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int) -> Any:
    return args[position] if len(args) > position else kwargs[("query", "key", "value")[position]]


def _like_its_input(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(hidden_states)


def _shared_once(
    modules: Mapping[str, nn.Module], counts: dict[str, ModuleCount]
) -> dict[str, ModuleCount]:
    """Takes parameters that an earlier module holds too from the later one's numbers."""
    seen: set[int] = set()
    result = dict(counts)
    for path, count in counts.items():
        again = 0
        for parameter in modules[path].parameters(recurse=False):
            again += parameter.numel() * (id(parameter) in seen)
            seen.add(id(parameter))
        if again:
            params, dense = count.params - again, count.dense_params - again
            result[path] = replace(count, params=params, dense_params=dense)
    return result
