"""A model run piece by piece over samples that stay in memory: every node once for each sample.

What a piece leaves to later ones is held and let go when its last reader has run, so that memory is
that of the tensors alive between two pieces, not of all of them.
"""

from collections.abc import Sequence

from onnxq.graph.model import Model
from onnxq.graph.protos import part, reads
from onnxq.numerics import affine
from onnxq.runtime import Session, in_order
from onnxq.samples.data import Batch
from onnxq.spec import Array, Floats

# What makes sequences, which are not held: it runs again for each of their readers.
SEQUENCES = {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
             "SplitToSequence"}  # fmt: skip


class Stream:
    """One model and its samples.

    Args:
        model: Not edited.
        batches: The samples.
    """

    def __init__(self, model: Model, batches: Sequence[Batch]) -> None:
        self._proto = model.to_proto()
        self._batches = list(batches)
        self._held = {name: [b.feeds[name] for b in batches] for name in batches[0].feeds}
        self._fixed: dict[str, Array] = {}
        self._waiting = {node.name: node for node in self._proto.graph.node}
        self._reads = {name: reads(node) for name, node in self._waiting.items()}
        self._remade = {
            t for n in self._waiting.values() if n.op_type in SEQUENCES for t in n.output
        }

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.nbytes for values in self._held.values() for x in values)

    def __getitem__(self, name: str) -> list[Array]:
        """A tensor on every batch, without rows that only fill one; runs what it still needs."""
        self._advance(name)
        return [b.trim(x) for b, x in zip(self._batches, self._held[name], strict=True)]

    def fix(self, name: str, values: Array) -> None:
        """Give a tensor the same value on all samples; what computed it does not run."""
        self._fixed[name] = values

    def scale(self, name: str, gain: Floats, offset: Floats, axis: int) -> None:
        """Replace a float tensor that was just read by ``gain * it + offset`` along an axis."""
        for i, x in enumerate(self._held[name]):
            g, o = (affine.broadcast(v.astype(x.dtype), x.ndim, axis) for v in (gain, offset))
            self._held[name][i] = x * g + o

    def _advance(self, name: str) -> None:
        """Run what ``name`` needs and has not run, and forget what nobody will read any more."""
        missing = self._missing(name)
        for node in missing:
            if self._waiting[node].op_type not in SEQUENCES:
                del self._waiting[node]
        wanted = {name}.union(*map(self._reads.__getitem__, self._waiting)) - self._remade
        if missing:
            piece = part(self._proto, missing, self._held, self._fixed, wanted)
            session = Session(piece)
            feeds = {i.name: self._held[i.name] for i in session.inputs}
            rows = [{n: x[i] for n, x in feeds.items()} for i in range(len(self))]
            results = list(in_order(session.run, rows))
            self._held |= {t: [r[t] for r in results] for t in session.outputs}
        self._held = {t: values for t, values in self._held.items() if t in wanted}

    def _missing(self, name: str) -> set[str]:
        """Names of the nodes that a tensor needs and that have not run."""
        needed: set[str] = set()
        wanted = {name} - self._held.keys()
        for node in reversed(self._waiting.values()):
            if not wanted.isdisjoint(node.output):
                needed.add(node.name)
                wanted |= self._reads[node.name] - self._held.keys() - self._fixed.keys()
        return needed
