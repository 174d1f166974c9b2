"""The GGUF reader agrees bit for bit with the `gguf` package, and refuses damaged files."""

import gguf
import numpy as np
import pytest
import torch

from minillm.model.gguf import GGUF

KINDS = ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small file of every storage type, written by the reference package."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "tiny ✓")
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", ""])
    writer.add_array("some.floats", [0.5, 1.5])
    writer.add_bool("some.flag", True)
    for kind in KINDS:
        weights = rng.normal(size=(6, 96)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_comes_back(written):
    about = GGUF(written).metadata
    assert about["general.name"] == "tiny ✓"
    assert about["tokenizer.ggml.tokens"] == ["a", "é", ""]
    assert about["some.floats"] == [0.5, 1.5]
    assert about["some.flag"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_type_is_read_bit_for_bit(written, kind):
    theirs = next(t for t in gguf.GGUFReader(written).tensors if t.name == kind)
    expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type).reshape(6, 96)
    assert torch.equal(GGUF(written).tensor(kind), torch.from_numpy(expected.copy()))


def test_every_truncation_is_refused(written, tmp_path):
    """Cut anywhere, the file raises ValueError, never a crash or a wrong tensor."""
    whole = written.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 400, 7), *range(400, len(whole) - 32, 97)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"truncated|empty|runs past"):
            file = GGUF(cut)
            for name in file.names:
                file.tensor(name)


def test_random_damage_never_escapes_as_another_error(written, tmp_path):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(written.read_bytes(), np.uint8)
    path = tmp_path / "damaged.gguf"
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(0, 700, size=3)] = rng.integers(0, 256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            file = GGUF(path)
            for name in file.names:
                file.tensor(name)
        except ValueError:
            pass


def test_other_files_and_unknown_names_are_refused(written, tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(ValueError, match=r"starts with b'PK.*expected b'GGUF'"):
        GGUF(path)
    with pytest.raises(ValueError, match="no tensor 'missing'; it has F32"):
        GGUF(written).tensor("missing")
