"""Weights as named tensors from a file of somebody else's, read without running anything that the file holds.

Three forms: safetensors; torch's zip of plain tensors (`weights_only`); and a TorchScript archive, the form of OpenAI's
CLIP, of which only the tensors are read: its code is never loaded. A pickle that names anything else is refused.
"""

from __future__ import annotations

import codecs
import pickle  # nosec B403: an unpickler that makes tensors and nothing else
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

SAFETENSORS = ".safetensors"
# numpy scalars (a best loss beside the weights) pickle as these: constructors of numbers, nothing that acts.
NUMBERS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
]
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


class WeightsUnreadable(ValueError):
    """The file is no weight file, is damaged, or holds more than plain tensors."""


def read_weights(path: Path) -> dict[str, Any]:
    """The file's document: tensors by name, or nested dictionaries of them. Raises: WeightsUnreadable."""
    try:
        if path.suffix == SAFETENSORS:
            return dict(load_file(path))
        if is_torchscript(path):
            return read_torchscript(path)
        with safe_globals(NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of torch's reader about files of other origin
            document = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsUnreadable(f"{path.name} cannot be read as a file of plain tensors") from error
    except zipfile.BadZipFile as error:
        raise WeightsUnreadable(f"{path.name} is a damaged archive") from error
    if not isinstance(document, dict):
        raise WeightsUnreadable(f"{path.name} holds no named tensors")
    return document


def is_torchscript(path: Path) -> bool:
    """A TorchScript archive has its constants beside its data; a file of torch.save has not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Any]:
    """Every tensor attribute of the module tree, by its dotted name as in `state_dict`."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = entry.removesuffix("data.pkl")
        with archive.open(entry) as stream:
            tree = ModuleUnpickler(stream, lambda key: archive.read(f"{root}data/{key}")).load()
    return dict(tensors_of(tree, ""))


class Attributes:
    """Stands for any TorchScript module: it only keeps what the archive says are its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.values = state


class ModuleUnpickler(pickle.Unpickler):
    """Knows tensors and attribute trees, and refuses every other name."""

    def __init__(self, stream: Any, storage: Callable[[str], bytes]) -> None:
        super().__init__(stream)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return Attributes
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # lists with a type: the type does not matter
            return lambda values, *_: values
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, identity: tuple[Any, ...]) -> Tensor:
        """("storage", dtype, key, device, count) to a flat tensor."""
        _, dtype, key, _, count = identity
        return torch.frombuffer(bytearray(self.storage(str(key))), dtype=dtype, count=count)


def rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """A view of a storage. Raises: RuntimeError where it would reach beyond the storage."""
    return torch.as_strided(storage, size, stride, offset)


def tensors_of(node: Attributes, prefix: str) -> list[tuple[str, Tensor]]:
    found = []
    for name, value in node.values.items():
        if isinstance(value, Attributes):
            found += tensors_of(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
    return found
