"""What a model of your own keeps in memory, from a step on tensors that take none.

    model = trace_model(make_model, make_batch)                   # a tenth of a second, no GPU
    memory_per_rank(model, Holding("fsdp", ranks=8)).rows         # memory.py

torch runs the step on tensors that have sizes and no values (its FakeTensorMode), so a model that
fits nowhere can be traced on a laptop. What the forward saves for the backward is asked of
autograd itself. Two batches tell what grows with the batch and what does not.
"""

from __future__ import annotations

import contextlib
import fnmatch
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddp_helpers import torch_private
from ddp_helpers.arguments import check_least
from ddp_helpers.data.batches import map_parts, tensors_of
from ddp_helpers.scaling.memory import PRECISIONS, Bytes, ModelMemory, Part
from ddp_helpers.scaling.rank_probes import LossFunction, MakeBatch, MakeModel

START = "before the blocks"
STYLES = {"colwise": 0, "rowwise": 1}  # the dimension of the weight that is cut
TRACED = (16, 32)  # batch sizes: with few samples a layer's gradient may need the most


def trace_model(
    make_model: MakeModel,
    make_batch: MakeBatch,
    *,
    blocks: Callable[[nn.Module], Sequence[nn.Module]] | None = None,
    loss_function: LossFunction | None = None,
    precision: str = "float32",
    tensor_parallel: int = 1,
    plan: Mapping[str, str] | None = None,
    name: str | None = None,
) -> ModelMemory:
    """Trace a forward and a backward, and note what each part of the model keeps.

    Args:
        make_model: makes the model; it is called where tensors have no values.
        make_batch: makes (inputs, targets) of a batch of the size it is given.
        blocks: the parts that FSDP gathers, checkpointing wraps and a pipeline deals out, in the
            order of their use. By default the longest row of equal modules.
        loss_function: by default torch's cross_entropy.
        precision: "float32", "autocast" (bfloat16), "mixed" (float32 parameters, gathered and used
            as bfloat16: FSDP's MixedPrecisionPolicy), or "bfloat16" (parameters, too).
        tensor_parallel, plan: ranks over which linear layers are cut, and how: {"blocks.*.up":
            "colwise", "blocks.*.down": "rowwise"}, as for torch's parallelize_module.

    Raises:
        ValueError: an unknown precision or style, a layer that can't be cut so, no such layer, a
            model that asks for values or trains nothing.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    check_least("tensor_parallel", tensor_parallel, 1)
    if (tensor_parallel > 1) != bool(plan):
        raise ValueError(
            f"tensor_parallel={tensor_parallel}, plan={plan!r}: give both or neither; a plan says "
            'how layers are cut, such as {"blocks.*.up": "colwise", "blocks.*.down": "rowwise"}'
        )
    options = (make_model, make_batch, blocks, loss_function, precision, tensor_parallel, plan)
    without_values = torch_private.FAKE_TENSORS.get()(allow_non_fake_inputs=True)
    try:
        small, big = (_Trace(size, without_values, *options) for size in TRACED)
    except RuntimeError as error:
        raise ValueError(
            f"a step on tensors that have no values failed: {type(error).__name__}: {error}. "
            "Does it run with values? What asks for them (item(), boolean masks, if on a tensor) "
            "can't be traced so: leave it out of make_model, or describe it with transformer()"
        ) from error
    parts = [_part(key, small, big) for key in small.order]
    notes = [
        f"activations traced with batches of {TRACED[0]} and {TRACED[1]}, as on a CPU (a GPU's "
        "dropout keeps a byte for each value, not two or four)"
    ]
    if small.has_lstm:
        notes.append("too low: what nn.LSTM's kernels keep for the backward, torch does not tell")
    return ModelMemory(
        name or str(getattr(make_model, "__name__", "model")),
        tuple(part for part in parts if part.shapes or part.frozen or part.kept != Bytes()),
        value_bytes=2 if precision == "bfloat16" else 4,
        gathered_bytes=2 if precision in ("bfloat16", "mixed") else 4,
        working=_line(small.working, big.working),
        precision=precision,
        notes=tuple(notes),
    )


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The row of modules of one class, beside each other, that has the most parameters.

    Single layers don't count: a block is worth gathering by itself.
    """
    best: tuple[int, list[nn.Module]] = (0, [])
    for parent in model.modules():
        for kind in {type(child) for child in parent.children()}:
            row = [child for child in parent.children() if type(child) is kind]
            row = [child for child in row if any(child.children())]
            size = sum(p.numel() for child in row for p in child.parameters())
            if len(row) > 1 and size > best[0]:
                best = (size, row)
    return best[1]


class _Trace:
    """One forward and backward with a batch of one size, and what was noted on the way."""

    def __init__(
        self,
        size: int,
        without_values: contextlib.AbstractContextManager,
        make_model: MakeModel,
        make_batch: MakeBatch,
        blocks: Callable[[nn.Module], Sequence[nn.Module]] | None,
        loss_function: LossFunction | None,
        precision: str,
        tensor_parallel: int,
        plan: Mapping[str, str] | None,
    ) -> None:
        self.now, self.order = START, [START]
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.frozen: Counter[str] = Counter()
        self.saved: dict[int, tuple[str, int]] = {}  # storage: (part that saved it, bytes)
        self.given: dict[int, tuple[str, int]] = {}  # storage: (block that is given it, bytes)
        self.inside: Counter[str] = Counter()
        self.output: Counter[str] = Counter()
        batch = make_batch(size)
        with without_values:
            model = make_model()
            if not any(each.requires_grad for each in model.parameters()):
                raise ValueError("no trained parameters: there is nothing to plan for")
            if plan:
                _cut(model, plan, tensor_parallel)
            _renew(model, precision in ("mixed", "bfloat16"))
            self.known = {_key(each) for each in [*model.parameters(), *model.buffers()]}
            self.has_lstm = any(isinstance(each, nn.LSTM) for each in model.modules())
            found = list((blocks or repeated_blocks)(model))
            self.names = {id(block): f"block {at}" for at, block in enumerate(found)}
            inputs, targets = (_like(each, precision) for each in batch)
            self.known |= {_key(each) for each in tensors_of((inputs, targets))}
            self._follow(model, found)
            loss_of = loss_function or nn.functional.cross_entropy
            self._run(model, inputs, targets, loss_of, precision == "autocast")
            self._assign(model, found)

    def _run(
        self, model: nn.Module, inputs: Any, targets: Any, loss_of: LossFunction, autocast: bool
    ) -> None:
        context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
        for parameter in model.parameters():  # gradients are counted elsewhere: let them go
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_let_go)
        with _live_bytes(self.known) as live:
            with context, torch.autograd.graph.saved_tensors_hooks(self._note, lambda t: t):
                loss = loss_of(model(inputs), targets)
            loss.backward()
        self.working = max(0, live.peak - sum(size for _, size in self.saved.values()))

    def _note(self, tensor: Tensor) -> Tensor:
        """Called by autograd for each tensor that it saves; views share what they view."""
        key = _key(tensor)
        if key in self.known:
            return tensor
        size = tensor.untyped_storage().nbytes()
        if key not in self.saved:
            self.saved[key] = (self.now, size)
            if self.given.get(key, ("",))[0] != self.now:
                self.inside[self.now] += size
        return tensor

    def _follow(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Know at any time which part is at work."""
        self.owners: dict[int, str] = {}
        within = {id(each) for block in blocks for each in block.modules()}
        for module in model.modules():
            if id(module) in self.names:
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)
            elif id(module) not in within:
                module.register_forward_pre_hook(self._use)

    def _use(self, module: nn.Module, _: tuple) -> None:
        self.owners.setdefault(id(module), self.now)

    def _enter(self, block: nn.Module, args: tuple) -> None:
        self.now = self.names[id(block)]
        for tensor in tensors_of(args):
            if _key(tensor) not in self.known:
                size = tensor.untyped_storage().nbytes()
                self.given.setdefault(_key(tensor), (self.now, size))
        self._in_order()

    def _leave(self, block: nn.Module, _: tuple, output: Any) -> None:
        self.output[self.now] += sum(t.untyped_storage().nbytes() for t in tensors_of(output))
        self.now = f"after {self.now}"
        self._in_order()

    def _in_order(self) -> None:
        if self.now not in self.order:
            self.order.append(self.now)

    def _assign(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Each parameter and buffer to the part that used it; what no module used, to the start."""
        owner = {id(each): self.names[id(block)] for block in blocks for each in block.modules()}
        seen: set[int] = set()
        for module in model.modules():
            part = owner.get(id(module)) or self.owners.get(id(module), START)
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            for tensor in own:
                if _key(tensor) in seen:
                    continue
                seen.add(_key(tensor))
                if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                    self.shapes.setdefault(part, []).append(tuple(tensor.shape))
                else:
                    self.frozen[part] += tensor.untyped_storage().nbytes()

    def kept(self, part: str) -> int:
        return sum(size for name, size in self.saved.values() if name == part)

    def inputs(self, block: str) -> int:
        """Of what a block is given, that which no part outside the blocks keeps anyway."""
        names = self.names.values()
        return sum(
            size
            for key, (name, size) in self.given.items()
            if name == block and self.saved.get(key, (block, 0))[0] in names
        )


def _part(key: str, small: _Trace, big: _Trace) -> Part:
    return Part(
        key,
        tuple(small.shapes.get(key, ())),
        frozen=small.frozen[key],
        kept=_line(small.kept(key), big.kept(key)),
        inputs=_line(small.inputs(key), big.inputs(key)),
        inside=_line(small.inside[key], big.inside[key]),
        output=_line(small.output[key], big.output[key]),
        block=key in small.names.values(),
    )


def _line(small: float, big: float) -> Bytes:
    """What does not grow with the batch, and what does."""
    each = (big - small) / (TRACED[1] - TRACED[0])
    return Bytes(small - each * TRACED[0], each)


def _renew(model: nn.Module, short: bool) -> None:
    """Put new tensors without values in the place of all; `short`: as .to(torch.bfloat16) does.

    A copied one (copy.deepcopy, as in nn.TransformerEncoder) is not known again by its views.
    """
    made: dict[int, nn.Parameter] = {}

    def like(old: Tensor) -> Tensor:
        dtype = torch.bfloat16 if short and old.is_floating_point() else old.dtype
        return torch.empty(old.shape, dtype=dtype)

    for module in model.modules():
        for name, old in [*module.named_parameters(recurse=False)]:
            new = nn.Parameter(like(old), old.requires_grad)
            setattr(module, name, made.setdefault(id(old), new))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, like(buffer))


def _cut(model: nn.Module, plan: Mapping[str, str], ranks: int) -> None:
    """Put a rank's share in the place of each linear layer that the plan names."""
    for pattern, style in plan.items():
        if style not in STYLES:
            known = ", ".join(STYLES)
            raise ValueError(f"plan[{pattern!r}]={style!r}: expected one of {known}")
        names = [name for name, _ in model.named_modules() if fnmatch.fnmatch(name, pattern)]
        if not names:
            raise ValueError(f"plan: no layer of the model is called {pattern!r}")
        for name in names:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _share(model, name, style, ranks))


def _share(model: nn.Module, name: str, style: str, ranks: int) -> nn.Linear:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"plan: {name} is {type(layer).__name__}, expected nn.Linear")
    sizes = [layer.out_features, layer.in_features]
    if sizes[STYLES[style]] % ranks:
        raise ValueError(
            f"{name}: {sizes[STYLES[style]]} features on {ranks} ranks: expected equal shares"
        )
    sizes[STYLES[style]] //= ranks
    return nn.Linear(sizes[1], sizes[0], bias=layer.bias is not None)


class _Live:
    """Bytes that tensors hold now, and the most so far."""

    def __init__(self, known: set[int]) -> None:
        self.known = known  # parameters and inputs, which are counted elsewhere
        self.sizes: dict[int, int] = {}
        self.bytes = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.known:
            return
        self.sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


@contextlib.contextmanager
def _live_bytes(known: set[int]) -> Iterator[_Live]:
    """Within it, each tensor that an operation makes is counted while it lives."""
    live = _Live(known)

    class Count(torch_private.OPERATOR_MODE.get()):  # type: ignore[misc]  # a private base is Any
        def __torch_dispatch__(
            self, operator: Callable, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            result = operator(*args, **kwargs or {})
            for tensor in tensors_of(result):
                live.add(tensor)
            return result

    with Count():
        yield live


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


def _key(tensor: Tensor) -> int:
    """The same for tensors that share their memory."""
    return tensor.untyped_storage()._cdata


def _like(tree: Any, precision: str) -> Any:
    """The same nesting, of tensors without values; floats as the model takes them."""

    def like(tensor: Tensor) -> Tensor:
        short = precision in ("mixed", "bfloat16") and tensor.is_floating_point()
        return torch.empty(tensor.shape, dtype=torch.bfloat16 if short else tensor.dtype)

    return map_parts(like, tree, lambda part: isinstance(part, Tensor))
