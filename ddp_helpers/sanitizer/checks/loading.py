"""Changes of weights that a program makes by name: load_state_dict and torch.nn.init."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.compare.callsite import places, user_frames
from ddp_helpers.sanitizer.compare.records import Edit
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.wrapped import Registry

if TYPE_CHECKING:
    from torch.nn.modules.module import _IncompatibleKeys


MOVES = ("to", "cuda", "cpu", "half", "float", "double", "bfloat16", "type", "to_empty")


class LoadingChecker:
    """Notes which call changed a wrapped model, and loads in which hardly a name fitted."""

    def __init__(self, session: Session, registry: Registry) -> None:
        self.session = session
        self.registry = registry
        self._note = session.guarded("loading", self.note)
        self._suspect = session.guarded("loading", self.suspect)
        self._count_keys = session.guarded("loading", self.count_keys)

    def put_patches(self) -> None:
        """Stand in for load_state_dict and for what torch.nn.init offers."""
        put = self.session.patches.put
        put(torch.nn.Module, "load_state_dict", self._load)
        for name in MOVES:
            put(torch.nn.Module, name, self._move)
        for name in vars(torch.nn.init):
            if name.endswith("_") and not name.startswith("_"):
                put(torch.nn.init, name, self._init)

    def _load(self, original: Callable) -> Callable:
        def load_state_dict(module: torch.nn.Module, state_dict, *args, **kwargs) -> object:
            result = original(module, state_dict, *args, **kwargs)
            self._note("load_state_dict", module.parameters())
            if kwargs.get("assign") or args[1:2] == (True,):
                self._suspect("load_state_dict(assign=True)")
            strict = args[0] if args else kwargs.get("strict", True)
            if not strict:
                self._count_keys(state_dict, result)
            return result

        return load_state_dict

    def _move(self, original: Callable) -> Callable:
        def move(module: torch.nn.Module, *args: object, **kwargs: object) -> object:
            result = original(module, *args, **kwargs)
            self._suspect(f".{original.__name__}()")
            return result

        return move

    def suspect(self, what: str) -> None:
        """Have each wrapped model looked at before its next backward."""
        for model in self.registry.models:
            frames, _ = user_frames()
            at = self.session.frame(places(frames)[-1]) if frames else "an unknown line"
            model.suspect = f"{what} at {at}"

    def _init(self, original: Callable) -> Callable:
        def init(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
            result = original(tensor, *args, **kwargs)
            self._note(f"torch.nn.init.{original.__name__}", [tensor])
            return result

        return init

    def note(self, what: str, parameters: Iterable[torch.Tensor]) -> None:
        """Remember the call for the models that hold these parameters."""
        if not self.registry.models:
            return
        for model in self.registry.models_of(parameters):
            frames, _ = user_frames()
            if frames:
                model.edit = Edit(what, places(frames)[-1])

    def count_keys(self, state_dict: Mapping, result: _IncompatibleKeys) -> None:
        """A load with strict=False in which most names fitted nothing is hardly meant."""
        missing, unexpected = list(result.missing_keys), list(result.unexpected_keys)
        given = len(state_dict)
        matched = given - len(unexpected)
        if not given or not missing or 2 * matched >= min(given, matched + len(missing)):
            return
        cause = (
            f"load_state_dict(strict=False) loaded {matched} of {given} entries: the model has no "
            f"`{unexpected[0]}`, and waits for `{missing[0]}`"
        )
        advice = (
            "load with strict=True, which tells what does not fit, and save "
            "`ddp.module.state_dict()`, the names without a wrapper's prefix"
        )
        if prefix := common_prefix(missing, unexpected):
            cause += f"; the prefix `{prefix}` is the likely cause"
        kind, place = "few-keys-matched", self.session.here()
        self.session.found(Finding(kind, cause, advice, (), self.session.step, place))


def common_prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What has to be put in front of one side's names, or taken away, to get the other's."""
    found: Counter[str] = Counter()
    for longer, shorter in ((unexpected, missing), (missing, unexpected)):
        names = set(shorter)
        for name in longer:
            parts = name.split(".")
            for cut in range(1, len(parts)):
                if ".".join(parts[cut:]) in names:
                    found[".".join(parts[:cut]) + "."] += 1
    return found.most_common(1)[0][0] if found else ""
