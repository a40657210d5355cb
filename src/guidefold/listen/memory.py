"""Objects that a denoiser writes into at one call and reads at later ones, such as caches.

What such an object holds is made by the denoiser's weights, so a student's is not the teacher's.
It is therefore not recorded: the call that wrote it is, and is made again, with the weights of the
moment, before the call that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from guidefold.ground import UnfoldableError
from guidefold.listen.arguments import Tree, describe_value, objects_of, tree_map, trees_equal
from guidefold.pipeline import COMPONENT, Denoisers, unwrap

EARLIER = "earlier_calls"
"""The keyword, in recorded arguments, for the calls that must be made before."""


@dataclass(frozen=True)
class Kept:
    """A copy of a call's arguments, from which the call can be made again.

    Attributes:
        arguments: ``(args, kwargs)``; an object that an earlier call has written into is as it was
            before that call.
        earlier: The calls that have written into these arguments' objects, each as the called
            component's name and its arguments.
        owners: The objects themselves.
        held: Copies of what they held just before the call.
    """

    arguments: Tree
    earlier: tuple[tuple[str, Tree], ...] = ()
    owners: tuple[Any, ...] = ()
    held: tuple[Any, ...] = ()


class Memory:
    """The objects that the calls of one run have written into."""

    def __init__(self) -> None:
        # By the object's identity, which stays its own as long as the object is kept here.
        self._written: dict[int, tuple[Any, Any, tuple[str, Tree]]] = {}

    def keep(self, arguments: Tree) -> Kept:
        """Copy a call's arguments, before the call."""
        owners = tuple(objects_of(arguments))
        known = [self._written[id(owner)] for owner in owners if id(owner) in self._written]
        copied = clone(arguments, {id(owner): before for owner, before, _ in known})
        calls = {id(call): call for _, _, call in known}
        return Kept(copied, tuple(calls.values()), owners, clone(owners))

    def note(self, name: str, kept: Kept) -> None:
        """Note which objects a call has written into, after the call.

        Args:
            name: The called component.
            kept: What :meth:`keep` gave before the call.

        Raises:
            UnfoldableError: An earlier call had written into such an object too.
        """
        call = (name, kept.arguments)
        copies = objects_of(kept.arguments)
        for owner, held, before in zip(kept.owners, kept.held, copies, strict=True):
            if trees_equal(owner, held):
                continue
            if id(owner) in self._written:
                raise UnfoldableError(
                    f"{name}: it writes into {describe_value(owner)} among its arguments at more "
                    "than one call",
                    "Each of its answers depends on all calls before it; Guidefold trains single "
                    "calls.",
                )
            self._written[id(owner)] = (owner, before, call)


def clone(tree: Tree, known: Mapping[int, Tree] | None = None) -> Tree:
    """Copy a tree and its tensors; ``known`` as in :func:`tree_map`."""
    return tree_map(lambda tensor: tensor.detach().clone(), tree, known or {})


def call_recorded(denoiser: nn.Module, arguments: Tree) -> Any:
    """Call a denoiser at recorded arguments, which stay as they are.

    Args:
        denoiser: The module, or a launcher's wrapper of it; of several denoisers, all or one.
        arguments: ``(args, kwargs)``; :data:`EARLIER` among the latter are calls that are made
            before, with gradients where they are enabled.

    Returns:
        The denoiser's output.
    """
    copied: Tree = tree_map(lambda tensor: tensor, arguments)
    if objects_of(arguments):  # a denoiser may write into their tensors
        copied = tree_map(lambda tensor: tensor.clone(), arguments)
    args, kwargs = copied
    several = isinstance(unwrap(denoiser), Denoisers)
    for earlier, own in kwargs.pop(EARLIER, ()):
        # Past a launcher's wrapper, which counts on one forward for each backward.
        unwrap(denoiser)(*earlier, **_for(own, several=several))
    return denoiser(*args, **_for(kwargs, several=several))


def _for(kwargs: Mapping[str, Any], *, several: bool) -> dict[str, Any]:
    """Keyword arguments without the name of the called component where there is only one."""
    return {name: v for name, v in kwargs.items() if several or name != COMPONENT}
