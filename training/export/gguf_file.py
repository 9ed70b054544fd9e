"""Writing a merged model as one GGUF file, tensor by tensor, and reading it back.

Matrices are Q8_0 (blocks of 32 eight-bit numbers with a 16-bit scale) or 16-bit floats; vectors stay float32, as
llama.cpp's own converter keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training.export.errors import ExportError
from training.export.gguf_shape import ROPE_FACTORS, Shape
from training.export.gguf_vocab import Vocabulary
from training.export.merge import Merge, MergedTensors
from training.export.merged import Progress

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray

Quantisation = Literal["q8_0", "f16"]
ALLOWED_ERROR = {"Q8_0": 0.02, "F16": 1e-3, "F32": 1e-6}
"""largest relative root mean square error of a tensor that is read back"""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its name there, the base's name (None for rotary factors), stored type and shape."""

    name: str
    source: str | None
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GgufModel:
    """A merged model about to become a GGUF file; `about` are general metadata: name, description, licence."""

    merge: Merge
    shape: Shape
    vocabulary: Vocabulary
    quantisation: Quantisation
    about: dict[str, str]

    @classmethod
    def plan(cls, merge: Merge, quantisation: Quantisation, about: dict[str, str]) -> GgufModel:
        """Check that the model can be written. Raises ExportRefused."""
        shape = Shape.of(merge.base.config)
        embedding = merge.base.tensors["model.embed_tokens.weight"]
        return cls(merge, shape, Vocabulary.of(merge.base.folder, embedding.shape[0]), quantisation, about)

    def entries(self) -> list[Entry]:
        """The tensors in the order of the file."""
        import gguf

        rows = [
            Entry(name, info.name, self._kind(info.shape), info.shape)
            for info in self.merge.base.tensors.values()
            if (name := self.shape.name_of(info.name)) is not None
        ]
        factors = self.shape.rope_factors()
        extra = [] if factors is None else [Entry(ROPE_FACTORS, None, gguf.GGMLQuantizationType.F32, factors.shape)]
        return extra + rows

    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(_stored_bytes(entry) for entry in self.entries())

    def write(self, file: Path, progress: Progress) -> None:
        """Write `file`. Raises ExportError for a number beyond 16-bit floats."""
        import gguf

        writer = gguf.GGUFWriter(file, self.shape.architecture)
        entries = self.entries()
        total, done = self.size_bytes(), 0
        try:
            self._describe(writer)
            for entry in entries:
                writer.add_tensor_info(
                    entry.name, entry.shape, _container(entry.kind), _stored_bytes(entry), raw_dtype=entry.kind
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for entry, values in self._values(entries):
                writer.write_tensor_data(_stored(entry, values))
                done += _stored_bytes(entry)
                progress(done, total)
        finally:
            writer.close()

    def read_back(self, file: Path) -> None:
        """Read `file` with the package's reader and compare every tensor with what it should hold. Raises ExportError.

        Names, types, shapes and numbers; and the metadata without which llama.cpp loads nothing.
        """
        import gguf

        reader = gguf.GGUFReader(file)
        for key in _needed_keys(self.shape.architecture):
            if reader.get_field(key) is None:
                raise ExportError(f"{file.name} was written without {key}")
        found = {tensor.name: tensor for tensor in reader.tensors}
        entries = self.entries()
        if found.keys() != {entry.name for entry in entries}:
            raise ExportError(f"{file.name} holds {len(found)} tensors, and {len(entries)} were to be written")
        for entry, values in self._values(entries):
            tensor = found[entry.name]
            if tensor.tensor_type != entry.kind or tuple(map(int, tensor.shape))[::-1] != entry.shape:
                raise ExportError(f"{file.name} holds {entry.name} with another type or shape")
            error = _relative_error(gguf.dequantize(tensor.data, tensor.tensor_type), values)
            if not error <= ALLOWED_ERROR[entry.kind.name]:
                raise ExportError(f"{file.name}: {entry.name} was read back with an error of {error:.2%}")

    def _kind(self, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
        import gguf

        kinds = gguf.GGMLQuantizationType
        if len(shape) < 2:
            return kinds.F32
        return kinds.Q8_0 if self.quantisation == "q8_0" and shape[-1] % 32 == 0 else kinds.F16

    def _values(self, entries: list[Entry]) -> Iterator[tuple[Entry, NDArray[np.float32]]]:
        """Each tensor's numbers in float32, as llama.cpp wants them laid out."""
        with self.merge.reading() as tensors:
            for entry in entries:
                yield entry, self._value(entry, tensors)

    def _value(self, entry: Entry, tensors: MergedTensors) -> NDArray[np.float32]:
        import numpy as np

        if entry.source is None:
            factors = self.shape.rope_factors()
            assert factors is not None  # noqa: S101  # such an entry exists only with them
            return factors
        values = tensors.read(entry.source).float().numpy()
        return np.ascontiguousarray(self.shape.lay_out(entry.source, values))

    def _describe(self, writer: gguf.GGUFWriter) -> None:
        import gguf

        kinds = {"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "f16": gguf.LlamaFileType.MOSTLY_F16}
        writer.add_type(gguf.GGUFType.MODEL)
        for key, value in self.about.items():
            writer.add_string(f"general.{key}", value)
        writer.add_file_type(kinds[self.quantisation])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.shape.describe(writer)
        self.vocabulary.describe(writer)


def _stored(entry: Entry, values: NDArray[np.float32]) -> NDArray[np.generic]:
    """The numbers in the type of the file."""
    import gguf
    import numpy as np

    if entry.kind is gguf.GGMLQuantizationType.F32:
        return values
    if not np.abs(values).max(initial=0.0) <= np.finfo(np.float16).max:
        raise ExportError(f"{entry.source} holds numbers that 16-bit floats cannot hold")
    return gguf.quantize(values, entry.kind)


def _stored_bytes(entry: Entry) -> int:
    import gguf

    numbers = 1
    for extent in entry.shape:
        numbers *= extent
    block, size = gguf.GGML_QUANT_SIZES[entry.kind]
    return numbers // block * size


def _container(kind: gguf.GGMLQuantizationType) -> np.dtype[np.generic]:
    """A type under which the writer takes shapes as they are, in numbers; only bytes would be converted."""
    import gguf
    import numpy as np

    return np.dtype(np.float16 if kind is gguf.GGMLQuantizationType.F16 else np.float32)


def _relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    import numpy as np

    size = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(found.reshape(wanted.shape) - wanted, dtype=np.float64))))
    return error / size if size else error


def _needed_keys(architecture: str) -> list[str]:
    import gguf

    model = (
        gguf.Keys.LLM.CONTEXT_LENGTH,
        gguf.Keys.LLM.EMBEDDING_LENGTH,
        gguf.Keys.LLM.BLOCK_COUNT,
        gguf.Keys.LLM.FEED_FORWARD_LENGTH,
        gguf.Keys.Attention.HEAD_COUNT,
        gguf.Keys.Attention.HEAD_COUNT_KV,
        gguf.Keys.Attention.LAYERNORM_RMS_EPS,
        gguf.Keys.Rope.FREQ_BASE,
    )
    tokenizer = (gguf.Keys.Tokenizer.MODEL, gguf.Keys.Tokenizer.PRE, gguf.Keys.Tokenizer.LIST)
    names = [key.format(arch=architecture) for key in model]
    return [gguf.Keys.General.ARCHITECTURE, *names, *tokenizer, gguf.Keys.Tokenizer.MERGES]
