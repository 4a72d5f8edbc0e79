"""Object-based TensorFlow checkpoints: from object paths back to variable names.

``tf.train.Checkpoint`` and SavedModel store a variable under the path by which Python reaches it
(``model/layers/0/kernel/.ATTRIBUTES/VARIABLE_VALUE``) and, beside the tensors, a graph of those objects
that also has each variable's own name. Source: tensorflow/core/protobuf/trackable_object_graph.proto; the
form of stored strings: WriteStringTensor in tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckptkit.base.budget import Budget
from ckptkit.base.checksums import crc32c
from ckptkit.base.text import counted
from ckptkit.formats.protobuf_wire import INT, TEXT, WireError, many, message, read_varint
from ckptkit.formats.tf_index import mask

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
MAX_GRAPH_BYTES = 256 << 20
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_VALUE_ATTRIBUTE = "VARIABLE_VALUE"
_SAVE_COUNTER = "save_counter"
_SHOWN = 3
_NODE_COST, _PART_COST = 2, 2

_OPTIMIZER = frozenset({"_iterations", "_variables"})
"""What an optimizer of Keras 2.11 or later has; those before make slot variables."""
_TRAINED = "_trainable_variables"
"""How an optimizer calls the variables that it trains, which are not its own."""
_COLLECTIONS = ("variables", "_all_variables")
"""What ``model.export`` lists variables under: the model's, and copies of those that its functions use."""


@dataclass(slots=True)
class _Node:
    """One object: what it leads to, its variables' keys and names, and the slots it (an optimizer) made."""

    children: Sequence[tuple[str, int]] = ()  # attribute, object
    attributes: Sequence[tuple[str, str, str]] = ()  # attribute, variable name, key
    slots: Sequence[tuple[int, str, int]] = ()  # variable's node, slot, slot's node
    key: str = ""
    """The key of the variable that it is; empty for other objects."""

    def __post_init__(self) -> None:
        self.key = next((key for attribute, _, key in self.attributes if attribute == _VALUE_ATTRIBUTE), "")


_CHILD = message(lambda node=0, name="": (name, node), {1: ("node", INT), 2: ("name", TEXT)})
_ATTRIBUTE = message(
    lambda name="", full_name="", key="": (name, full_name, key),
    {1: ("name", TEXT), 2: ("full_name", TEXT), 3: ("key", TEXT)},
)
_SLOT = message(
    lambda variable=0, name="", slot=0: (variable, name, slot),
    {1: ("variable", INT), 2: ("name", TEXT), 3: ("slot", INT)},
)
_NODE = message(
    _Node,
    {
        1: ("children", many(_CHILD, nodes=_PART_COST)),
        2: ("attributes", many(_ATTRIBUTE, nodes=_PART_COST)),
        3: ("slots", many(_SLOT, nodes=_PART_COST)),
    },
)
_GRAPH = message(lambda nodes=(): nodes, {1: ("nodes", many(_NODE, nodes=_NODE_COST))})


@dataclass
class Names:
    """The names that an object graph gives the keys of a checkpoint."""

    # Key -> name; names are distinct. A variable is called what the graph calls it, or its object path where
    # the graph says nothing; a slot variable ``<variable>/<slot>``; ``save_counter`` keeps its path.
    by_key: dict[str, str] = field(default_factory=dict)
    # Where a name was taken, the later key keeps its path: path -> the name it would have.
    namesakes: dict[str, str] = field(default_factory=dict)
    # Keys without a name: the same variable with the same bytes has one under another key.
    twins: frozenset[str] = frozenset()
    optimizer: frozenset[str] = frozenset()  # names of variables that belong to an optimizer

    def notes(self) -> list[str]:
        """What is unusual, one sentence each."""
        notes = []
        if self.twins:
            notes.append(
                f"{counted(len(self.twins), 'variable', 'are')} in the file twice with the same "
                "bytes, as model.export "
                "writes them: each is read once"
            )
        if self.namesakes:
            some = sorted(set(self.namesakes.values()))
            listed = ", ".join(some[:_SHOWN]) + (", ..." if len(some) > _SHOWN else "")
            notes.append(
                f"{counted(len(self.namesakes), 'variable', 'are')} listed by object path, "
                f"because another one has the same name: {listed}"
            )
        return notes


def decode_string_scalar(data: bytes) -> bytes:
    """Read a scalar string tensor as it is in a data file: its length, the length's checksum, the string."""
    size, position = read_varint(data)
    start = position + 4
    if start + size != len(data):
        raise WireError(f"a string of {size} bytes in {len(data)}")
    if mask(_length_crc32c(size)) != int.from_bytes(data[position:start], "little"):
        raise WireError("the checksum of a string's length differs")
    return data[start:]


def string_checksum(text: bytes) -> int:
    """Masked CRC-32C that a bundle's entry has for a scalar string.

    It is not that of the stored bytes: the length is taken as a fixed-width number, not as the varint.
    """
    length = _length_crc32c(len(text))
    return mask(crc32c(text, crc32c(mask(length).to_bytes(4, "little"), length)))


def _length_crc32c(size: int) -> int:
    return crc32c(size.to_bytes(4 if size < 1 << 32 else 8, "little"))


def variable_names(
    keys: Iterable[str],
    graph: bytes,
    budget: Budget,
    fingerprint: Callable[[str], Hashable] = lambda key: None,
) -> Names:
    """Give every key of an object-based checkpoint its variable's name."""
    keys = list(keys)
    budget.spend(names=len(graph))
    nodes: Sequence[_Node] = _GRAPH.read(graph, budget)
    wanted = _wanted(nodes, budget)
    alike: dict[Hashable, int] = {}
    prints = {
        key: alike.setdefault((wanted[key], found), len(alike))
        for key in keys
        if key in wanted and (found := fingerprint(key))
    }
    found = Names(twins=_twins(nodes, prints, budget))
    taken: set[str] = set()
    for key in keys:
        if key in found.twins:
            continue
        path = key.removesuffix(VALUE_SUFFIX)
        name = path if path == _SAVE_COUNTER else wanted.get(key) or path
        if name in taken:
            free = next((free for free in (path, key) if free not in taken), "")
            if not free:
                raise WireError(f"no distinct name for {key!r}")
            found.namesakes[free] = name
            name = free
        found.by_key[key] = name
        taken.add(name)
    of_optimizer = _keys_of_optimizers(nodes)
    found.optimizer = frozenset(name for key, name in found.by_key.items() if key in of_optimizer)
    return found


def _wanted(nodes: Sequence[_Node], budget: Budget) -> dict[str, str]:
    """Key -> variable name, as far as the graph knows it."""
    names = {key: name for node in nodes for _, name, key in node.attributes if name}
    for node in nodes:
        for variable, slot, slot_variable in node.slots:
            owner, key = _at(nodes, variable).key, _at(nodes, slot_variable).key
            if owner and key and slot:
                names[key] = name = f"{names.get(owner) or owner.removesuffix(VALUE_SUFFIX)}/{slot}"
                budget.spend(names=len(name))
    return names


def _at(nodes: Sequence[_Node], number: int) -> _Node:
    if not 0 <= number < len(nodes):
        raise WireError(f"a slot variable or child that is object {number} of {len(nodes)}")
    return nodes[number]


def _twins(nodes: Sequence[_Node], prints: Mapping[str, int], budget: Budget) -> frozenset[str]:
    """Keys of the copies that ``model.export`` makes, each the same as one of the model's own variables."""
    twins: set[str] = set()
    for node in nodes:
        lists = {name: child for name, child in node.children if name in _COLLECTIONS}
        if len(lists) < len(_COLLECTIONS):
            continue
        listed = [_at(nodes, lists[name]).children for name in _COLLECTIONS]
        budget.spend(steps=_PART_COST * sum(map(len, listed)))  # many objects may share a long list
        own, copies = ([_at(nodes, child).key for _, child in children] for children in listed)
        left = Counter(prints[key] for key in own if key in prints)
        for key in set(copies).difference(own):
            if key in prints and left[prints[key]] > 0:
                left[prints[key]] -= 1
                twins.add(key)
    return frozenset(twins)


def _keys_of_optimizers(nodes: Sequence[_Node]) -> set[str]:
    """Keys of variables that nothing but an optimizer leads to."""
    if not nodes:
        return set()
    optimizers = {
        number
        for number, node in enumerate(nodes)
        if node.slots or {name for name, _ in node.children} >= _OPTIMIZER
    }
    elsewhere = _reached(nodes, {0}, avoid=optimizers)
    own = _reached(nodes, optimizers, avoid=elsewhere)
    return {nodes[number].key for number in own} - {""}


def _reached(nodes: Sequence[_Node], starts: Iterable[int], *, avoid: Collection[int]) -> set[int]:
    """Objects that some others lead to, themselves included."""
    waiting = [number for number in starts if number not in avoid]
    reached: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number in reached:
            continue
        reached.add(number)
        waiting += [
            child
            for name, child in _at(nodes, number).children
            if child not in avoid and not name.startswith(_TRAINED)
        ]
    return reached
