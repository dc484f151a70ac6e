"""The checkpoint of a pruned model: every tensor and file of its source, unchanged except for the units."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from selfprune.allocations.unit import Item
from selfprune.checkpoints.carried_files import CarriedFiles
from selfprune.checkpoints.reader import INDEX, SINGLE, open_file
from selfprune.checkpoints.source import AnySource, open_source
from selfprune.checkpoints.stored_tensors import DTYPES, StoredTensor, torch_dtype
from selfprune.errors import ModelError
from selfprune.exports.cutting import cuttable, n_kept, write_cut
from selfprune.exports.dropping import gone_blocks, renumber_files
from selfprune.exports.stored_parts import list_parts, stored_name
from selfprune.models.loading import LoadedModel
from selfprune.storage.tensor_file import write_tensors
from selfprune.storage.whole_files import disk_error, write_whole

EXPERTS_PATH = ".experts."
"""What the names of tensors of experts hold, however a checkpoint splits them."""
MAX_FILE_BYTES = 4_000_000_000
"""Of a file of weights that lie outside the blocks, or of all weights in one file."""
N_TOLD = 5


class PrunedCheckpoint:
    """What is written of a pruned model, file by file.

    The units come from the model. All other tensors come from the files that it was loaded from: in the number format that they
    have there, or in the model's where it is the format of most weights there. Where the units are not found in those files,
    everything comes from the model.

    Args:
        loaded: the model; its units may be pruned later.
        target: the folder that the checkpoint is for.
        by_block: a file per block, even of a small model.

    Attributes:
        files: name of each file of weights -> names of its tensors; the files of the blocks come first, in order.
        n_bytes: of all files.
        cut: names of the tensors of sublayers that may be cut, which are not stored where a sublayer is gone as a whole.
        left_out: paragraphs about what the source holds and the result lacks.

    Raises:
        ModelError: when the source's weights do not fit its configuration.
    """

    def __init__(self, loaded: LoadedModel, target: Path, by_block: bool = True) -> None:
        self._loaded = loaded
        self.left_out: list[str] = []
        self._source = self._open_source()
        self._structures = cuttable(loaded)
        self._parts = list_parts(loaded, self._source, self._structures)
        self._told = {name: told for part in self._parts for name, told in part.stored.items()}
        sublayers = tuple(f"{structure.unit.name}." for structure in self._structures)
        self.cut = {name for name, told in self._told.items() if told.reverted.startswith(sublayers)}
        if any(structure.unit.item is Item.EXPERT for structure in self._structures):
            self.cut |= {name for name, told in self._told.items() if told.is_of_unit and EXPERTS_PATH in told.reverted}
        self._drop_source_unless_it_holds_the_units()
        self._main_dtype = _main_dtype(self._source)
        known = self._source.keys() | set(loaded.new_biases)
        groups = [[name for name in part.stored if not self._source or name in known] for part in self._parts]
        groups[-1] += sorted(self._source.keys() - self._told.keys())
        sizes = {name: self._n_bytes(name) for group in groups for name in group}
        self.files = _layout(groups, sizes, by_block or sum(sizes.values()) > MAX_FILE_BYTES)
        self._carried = CarriedFiles(loaded.source, target) if loaded.source else None
        self.n_bytes = sum(sizes.values()) + (self._carried.n_bytes if self._carried else 0)
        if self._carried and self._carried.left_out:
            told = "; ".join(f"{name}: {reason}" for name, reason in self._carried.left_out.items())
            self.left_out.append(f"not everything in {loaded.source} was copied to the pruned model: {told}")

    def write(self, folder: Path, remedy: str) -> None:
        """Writes everything.

        Args:
            folder: where to.
            remedy: what to do when that fails, as `disk_error` takes it.

        Raises:
            ModelError: when the source can no longer be read.
            SelfpruneError: when the disk is full or the folder cannot be written.
        """
        for name in self.files:
            self.write_file(name, folder, remedy)
        self.write_rest(folder, remedy)

    def write_file(self, name: str, folder: Path, remedy: str) -> None:
        """Writes one file of weights.

        Args:
            name: one of `files`.
            folder: where to.
            remedy: what to do when that fails, as `disk_error` takes it.

        Raises:
            ModelError: when the source can no longer be read.
            SelfpruneError: when the disk is full or the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        wanted = set(self.files[name])
        made = {name for name in wanted if not self._source or (name in self._told and self._told[name].is_of_unit)}
        for part in self._parts:
            if made & part.stored.keys():
                made_of = part.make(self._loaded, self._structures)
                tensors |= {stored: tensor for stored, tensor in made_of.items() if stored in made}
        tensors |= {stored: self._source[stored].read().to(self._dtype(stored)) for stored in wanted - made}
        empty = {self._told[name].reverted for name in wanted & self.cut & tensors.keys() if not tensors[name].numel()}
        gone = tuple(f"{s.unit.name}." for s in self._structures if s.reader.parameter in empty)
        # of a reader without columns the bias is left
        biases = {s.reader.parameter.removesuffix("weight") + "bias" for s in self._structures}
        cut = {n for n in self.cut if self._told[n].reverted.startswith(gone) and self._told[n].reverted not in biases}
        left = [n for n in self.files[name] if n not in cut and n in tensors]
        write_tensors(folder / name, {stored: tensors[stored] for stored in left}, {"format": "pt"}, remedy)

    def write_rest(self, folder: Path, remedy: str) -> None:
        """Writes all that is no weight: the index, the configuration, the tokenizer and the source's other files.

        Args:
            folder: where to.
            remedy: what to do when that fails, as `disk_error` takes it.

        Raises:
            SelfpruneError: when the disk is full or the folder cannot be written.
        """
        model = self._loaded.model
        try:
            if self._carried:
                self._carried.copy(folder, str(_model_dtype(self._loaded)).removeprefix("torch."))
            else:
                model.config.architectures = [type(model).__name__]
                model.config.save_pretrained(folder)
                self._loaded.tokenizer.save_pretrained(folder)
            left = self._write_cut(folder, remedy) if self._structures or self._loaded.new_biases else list(self.files)
        except OSError as error:
            raise disk_error(folder, error, remedy) from error
        if SINGLE not in self.files:
            written = self._written(folder, left)
            weight_map = {name: tensor.path.name for name, tensor in sorted(written.items())}
            index = {"metadata": {"total_size": sum(tensor.n_bytes for tensor in written.values())}, "weight_map": weight_map}
            write_whole(folder / INDEX, json.dumps(index, indent=2) + "\n", remedy)
        for file in set(self.files) - set(left):
            (folder / file).unlink(missing_ok=True)

    def _write_cut(self, folder: Path, remedy: str) -> list[str]:
        """Writes the configuration of a model that was cut, and its weights anew where blocks are gone: the files with them."""
        written = self._written(folder, self.files)
        shapes = {self._told[name].reverted: tensor.shape for name, tensor in written.items() if name in self._told}
        named = {name: stored_name(self._loaded, name) for name in {s.counted.parameter for s in self._structures}}
        shapes |= {name: shapes[stored] for name, stored in named.items() if stored in shapes}
        kept, path = n_kept(self._structures, shapes), self._loaded.blocks_path
        gone = gone_blocks(written, len(self._loaded.blocks), path)
        left = renumber_files(folder, list(self.files), path, gone, remedy) if gone else list(self.files)
        write_cut(folder, self._loaded.model.config, kept, self._new_biases(), gone)
        return left

    def _new_biases(self) -> dict[int, list[str]]:
        """Block -> its matrices that have a bias which the family does not know."""
        found: dict[int, list[str]] = {}
        for unit in self._loaded.units:
            if f"{unit.matrix}.bias" in self._loaded.new_biases:
                found.setdefault(unit.block, []).append(unit.matrix.removeprefix(self._loaded.block_prefix(unit.block)))
        return found

    def _written(self, folder: Path, files: Iterable[str]) -> dict[str, StoredTensor]:
        """Name in the checkpoint -> what was written of it."""
        return {name: tensor for file in files for name, tensor in open_file(folder / file).items()}

    def _open_source(self) -> dict[str, AnySource]:
        """Name -> tensor of the source; empty where it cannot be read tensor by tensor."""
        if self._loaded.source is None:
            return {}
        try:
            return open_source(self._loaded.source)
        except ModelError as error:
            self.left_out.append(
                f"the pruned model holds only what {type(self._loaded.model).__name__} has read of its source: {error}"
            )
            return {}

    def _drop_source_unless_it_holds_the_units(self) -> None:
        new = self._loaded.new_biases
        units = {name: told.shape for name, told in self._told.items() if told.is_of_unit and told.reverted not in new}
        for name, shape in units.items():
            found = self._source[name].shape if name in self._source else shape
            if found != shape:
                raise ModelError(
                    f"the weight {name} has the shape {list(found)} in {self._loaded.source}, but its config.json needs "
                    f"{list(shape)}; weights and config.json come from different checkpoints, so fetch both again"
                )
        strange = [name for name in units if name not in self._source]
        if self._source and strange:
            lost = sorted(self._source.keys() - self._told.keys())
            self.left_out.append(
                f"{self._loaded.source} does not hold {strange[0]} as {type(self._loaded.model).__name__} would store it, so the "
                f"pruned model holds what was read of its source, and {len(lost)} names of tensors there are not in it"
                + (f" ({', '.join(lost[:N_TOLD])}{', ...' if len(lost) > N_TOLD else ''})" if lost else "")
            )
            self._source = {}

    def _dtype(self, name: str) -> torch.dtype:
        """The number format that a tensor of the source is stored in."""
        stored, asked = torch_dtype(name, self._source[name].dtype), _model_dtype(self._loaded)
        if stored != self._main_dtype or stored == asked:
            return stored
        # the model may keep more digits than it was asked to
        return self._told[name].dtype if name in self._told else asked

    def _n_bytes(self, name: str) -> int:
        if name in self._told and (not self._source or self._told[name].is_of_unit):
            return torch.Size(self._told[name].shape).numel() * self._told[name].dtype.itemsize
        return torch.Size(self._source[name].shape).numel() * self._dtype(name).itemsize


def _model_dtype(loaded: LoadedModel) -> torch.dtype:
    """The number format that a model was loaded in."""
    told = loaded.model.config.dtype
    return told if isinstance(told, torch.dtype) else loaded.model.dtype


def _main_dtype(source: dict[str, AnySource]) -> torch.dtype | None:
    """The floating format of most weights."""
    n_items: Counter[torch.dtype] = Counter()
    for tensor in source.values():
        dtype = DTYPES.get(tensor.dtype)
        if dtype is not None and dtype.is_floating_point:
            n_items[dtype] += torch.Size(tensor.shape).numel()
    return n_items.most_common(1)[0][0] if n_items else None


def _layout(groups: list[list[str]], sizes: dict[str, int], by_block: bool) -> dict[str, list[str]]:
    """File -> names: a file per block and files of bounded size for the rest, or one file for all."""
    if not by_block:
        return {SINGLE: sorted(name for group in groups for name in group)}
    *blocks, others = groups
    rest: list[list[str]] = [[]]
    for name in others:
        if rest[-1] and sum(sizes[n] for n in rest[-1]) + sizes[name] > MAX_FILE_BYTES:
            rest.append([])
        rest[-1].append(name)
    files = [*blocks, *rest]
    return {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": names for i, names in enumerate(files)}
