"""The weights of an optimizer that are theta of engines: updates go there, and the parameters here stay what the run began with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ..estimators.perturbation import NOTHING, Pass, PerturbedWeights
from ..layout import Layout
from ..ops.arguments import Term

if TYPE_CHECKING:
    from .pool import Pool


class PooledWeights(PerturbedWeights):
    """Weights around which engines measure.

    Args:
        layout: the parameters here, on the host. They are those of the checkpoint until ``Pool.pull`` brings theta into them.
        pool: the engines.
    """

    def __init__(self, layout: Layout, pool: "Pool") -> None:
        super().__init__(layout)
        self.pool = pool
        self._seen = self._versions

    def point(self, terms: Iterable[Term]) -> list[Term]:
        """Where an engine is to be for a point of a request: its terms, and those by which theta counts as elsewhere (``away``)."""
        return NOTHING.then([*self._away, *terms]).terms

    @contextmanager
    def _showing(self, terms: list[list[Term]]) -> Iterator[None]:
        self.pool.go(terms[0])
        yield

    @contextmanager
    def undisturbed(self) -> Iterator[list[list[torch.Tensor]]]:
        with super().undisturbed():
            yield [[tensor for _, tensor in self.pool.read()]]

    def check_loaded(self, state_dict: dict[str, Any]) -> None:
        if state_dict["param_groups"][0]["step"] or state_dict["state"]:
            raise ValueError(
                f"the state is of step {state_dict['param_groups'][0]['step']}, to which no state brings engines: record the run, and "
                "bring them there by zokern.Trajectory.read(log).replay(model, perturbation=pool)"
            )

    def look(self) -> None:
        if self._seen != self._versions:
            raise RuntimeError(
                "the parameters were written to, of which engines know nothing: write them into a checkpoint, and begin there"
            )

    def pulled(self) -> None:
        """Theta was written into the parameters, which is no change of it."""
        self.passes, self._seen = [passes + 1 for passes in self.passes], self._versions

    @property
    def _versions(self) -> list[int]:
        return [p._version for p in self.layout.params]

    def _add_noise(self, i: int, move: Pass) -> None:
        self.pool.update(move)

    def _moved(self, i: int) -> None:
        """Nothing here has."""

    def _update(self, *args: Any, **more: Any) -> NoReturn:
        raise ValueError(
            "the optimizer's updates are more than terms (it keeps state beside the weights, or takes signs), and engines apply terms: "
            "take one of them whose updates are terms, such as EvolutionStrategies, FZOO or MeZO"
        )

    def over(self, tensors: list[torch.Tensor]) -> NoReturn:
        raise ValueError("engines hold one theta, and the optimizer needs two: take one of them that does with one, such as MeZO")
