"""The gptq encoder over whole models: families, routes, threads, interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from calibration_models import DENSE, POSITIONAL, family_folder
from convert_models import tensors, types

from gguf_bof4 import native
from gguf_bof4.convert import ConversionReport, convert
from gguf_bof4.encoders import gptq as gptq_encoder
from gguf_bof4.encoders.encoder import Encoded
from gguf_bof4.encoders.gptq import driver
from gguf_bof4.encoders.gptq.checkpoint import Checkpoint
from gguf_bof4.encoders.gptq.layer import Layer, Workers
from gguf_bof4.encoders.gptq.model import Skeleton, first_inputs, make_skeleton, release
from gguf_bof4.encoders.gptq.samples import make_samples
from gguf_bof4.encoders.gptq.shares import enough_samples
from gguf_bof4.encoders.gptq.sources import read_files, tokens_of
from gguf_bof4.encoders.gptq.weights import FolderWeights, GgufWeights
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model

TEXT = Path(__file__)
"""Any text will do."""

SHORT: dict[str, Any] = {
    "encoder": "gptq",
    "calibration": str(TEXT),
    "samples": 4,
    "sample_length": 48,
    "type": "BOF4_S",
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models as folders, made when they are asked for."""

    class Made(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            self[family] = family_folder(tmp_path_factory.mktemp(family), family)
            return self[family]

    return Made()


@pytest.fixture(scope="session")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same models as GGUF files, all in F32."""

    class Made(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            self[family] = tmp_path_factory.mktemp("gguf") / f"{family}.gguf"
            convert(folders[family], self[family], type="BOF4_S", tensor_types=(".=f32",), token_embedding_type="f32",
                    output_tensor_type="f32", opq=("off",))  # fmt: skip
            return self[family]

    return Made()


def gptq(source: Path, target: Path, **options: Any) -> ConversionReport:
    return convert(source, target, **{**SHORT, **options})


def skeleton_of(source: Path) -> tuple[Skeleton, Any]:
    if source.is_dir():
        weights: Any = FolderWeights(source, sorted(source.glob("*.safetensors")))
    else:
        weights = GgufWeights(open_model(source))
    return make_skeleton(weights.config(), source), weights


@pytest.mark.parametrize("family", [*DENSE, *POSITIONAL])
def test_families(family: str, folders: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    """Every matrix of a decoder layer is reached, and encoded otherwise than by search."""
    report = gptq(folders[family], tmp_path / "gptq.gguf")
    assert report.not_compensated == ()
    convert(files[family], tmp_path / "search.gguf", type="BOF4_S", encoder="search")
    compensated, searched = tensors(tmp_path / "gptq.gguf"), tensors(tmp_path / "search.gguf")
    matrices = [name for name, t in types(tmp_path / "gptq.gguf").items() if t == "BOF4_S"]
    assert len(matrices) >= 2 * 4
    assert all(compensated[name] != searched[name] for name in matrices)
    assert all(compensated[name] == searched[name] for name in compensated.keys() - matrices if ".opq" not in name)


def test_superblocks(folders: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    """A model whose rows are all multiples of 256, in BOF4_K, lists included."""
    report = gptq(folders["wide"], tmp_path / "gptq.gguf", type="BOF4_K", opq=("0.9",))
    assert report.not_compensated == ()
    assert sum(t.qtype == "BOF4_K" for t in report.tensors) == 2 * 7
    assert len(report.listed) == 2 * 7
    convert(files["wide"], tmp_path / "search.gguf", type="BOF4_K", encoder="search", opq=("0.9",))
    compensated, searched = tensors(tmp_path / "gptq.gguf"), tensors(tmp_path / "search.gguf")
    assert all(compensated[t.name] != searched[t.name] for t in report.tensors if t.qtype == "BOF4_K")


def test_types_of_llama_cpp(folders: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    """A file that any llama.cpp runs: all matrices of the layers compensated, and nothing of this project left."""
    report = gptq(folders["wide"], tmp_path / "gptq.gguf", type="Q4_K", tensor_types=("attn_v=q6_k", "ffn_down=q3_k"))
    assert report.not_compensated == () and report.needs_patch == {} and report.listed == ()
    inside = {t.name: t.qtype for t in report.tensors if t.name.startswith("blk.") and len(t.shape) > 1}
    assert set(inside.values()) == {"Q4_K", "Q6_K", "Q3_K"} and len(inside) == 2 * 7
    model = open_model(tmp_path / "gptq.gguf")
    assert model.value("general.file_type") == 14  # MOSTLY_Q4_K_S
    assert [key for key in model.fields if "bof4" in key] == []
    convert(files["wide"], tmp_path / "search.gguf", type="Q4_K", tensor_types=("attn_v=q6_k", "ffn_down=q3_k"))
    compensated, searched = tensors(tmp_path / "gptq.gguf"), tensors(tmp_path / "search.gguf")
    assert compensated.keys() == searched.keys()
    assert {name for name in inside if compensated[name] == searched[name]} == set()
    assert all(compensated[name] == searched[name] for name in compensated.keys() - inside)


def test_a_layer_of_other_types_is_left_alone(files: dict[str, Path], tmp_path: Path) -> None:
    report = gptq(files["llama"], tmp_path / "gptq.gguf", tensor_types=(r"blk\.0\.=f16",))
    assert {t.qtype for t in report.tensors if t.name.startswith("blk.1.") and len(t.shape) > 1} == {"BOF4_S"}
    assert {t.qtype for t in report.tensors if t.name.startswith("blk.0.") and len(t.shape) > 1} == {"F16"}
    assert report.not_compensated == ()


def test_fallbacks_are_compensated_and_rows_of_half_panels_say_why_not(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    report = gptq(files["llama"], tmp_path / "narrow.gguf", type="Q4_K")  # rows of 128 and 256
    assert {t.qtype for t in report.fallbacks if t.name.startswith("blk.")} == {"Q5_0"}
    assert report.not_compensated == ()
    report = gptq(folders["uneven"], tmp_path / "uneven.gguf")  # rows of 128 and 224: BOF4_S and Q8_0
    assert {t.name for t in report.not_compensated} == {f"blk.{i}.ffn_down.weight" for i in range(2)}
    assert {t.not_compensated for t in report.not_compensated} == {
        "its rows of 224 are no multiple of 64: encoder search, weighted by the mean squares of its inputs"
    }


@pytest.mark.parametrize("family", [f for f in DENSE if f not in {"phi", "mistral"}])
def test_parameters_of_a_gguf_file_are_those_of_the_folder(
    family: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    """Rows put back in order, norms shifted back: what is run is the model that was converted."""
    skeleton, weights = skeleton_of(files[family])
    names = [name for name, _ in skeleton.model.named_parameters() if ".layers." in name or "embed" in name]
    weights.fill(skeleton, names)
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    for name in names:
        torch.testing.assert_close(
            skeleton.model.get_parameter(name), model.get_parameter(name), rtol=0, atol=2e-7, msg=name
        )


@pytest.mark.parametrize("family", [*DENSE, *POSITIONAL, "qwen3moe", "gptoss"])
def test_layer_by_layer_is_what_transformers_computes(family: str, folders: dict[str, Path]) -> None:
    skeleton, weights = skeleton_of(folders[family])
    attention = skeleton.model.config._attn_implementation
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folders[family], dtype=torch.float32, attn_implementation=attention
    )
    tokens = torch.arange(3, 3 + 2 * 60).reshape(2, 60)
    with torch.inference_mode():
        expected = model(tokens, output_hidden_states=True).hidden_states
        inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), tokens)
        torch.testing.assert_close(inputs.hidden, expected[0])
        assert all(p.is_meta for p in skeleton.model.parameters())
        prefix = f"{skeleton.layers_name}.0."
        weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[0].named_parameters()])
        workers = Workers(2, torch.device("cpu"))
        Layer(skeleton.layers[0], inputs.arguments[0], workers).advance(inputs.hidden)
        workers.close()
        release(skeleton.model)
    torch.testing.assert_close(inputs.hidden, expected[1])


def test_hessian_and_drift_are_those_of_the_inputs(folders: dict[str, Path]) -> None:
    skeleton, weights = skeleton_of(folders["llama"])
    with torch.inference_mode():
        tokens = torch.arange(5 * 40).reshape(5, 40)
        inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), tokens)
        prefix = f"{skeleton.layers_name}.0."
        weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[0].named_parameters()])
        seen: list[torch.Tensor] = []
        module = skeleton.layers[0]
        for workers in (Workers(1, torch.device("cpu")), Workers(3, torch.device("cpu"))):
            layer = Layer(module, inputs.arguments[0], workers)
            names = ["mlp.up_proj", "self_attn.k_proj", "self_attn.q_proj", "mlp.gate_proj"]
            called = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.gate_proj", "mlp.up_proj"]]
            assert layer.groups(names, inputs.hidden[:1]) == called
            (moments,) = layer.moments("mlp.down_proj", inputs.hidden, layer, 1.5 * inputs.hidden)
            matrix = module.mlp.down_proj.weight
            (through,) = layer.moments("mlp.down_proj", inputs.hidden, layer, 1.5 * inputs.hidden, matrix=matrix)
            seen += (moments.hessian, moments.drift, through.drift)
            assert torch.equal(layer.hessian("mlp.down_proj", inputs.hidden), moments.hessian)
            assert torch.equal(through.hessian, moments.hessian)
            workers.close()
        given: list[torch.Tensor] = []
        module.mlp.down_proj.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        module(inputs.hidden, **inputs.arguments[0])
        module(1.5 * inputs.hidden, **inputs.arguments[0])
    x, y = (g.reshape(-1, g.shape[-1]).double() for g in given)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))  # whatever the number of workers
    assert seen[2].shape == (128, 256)
    torch.testing.assert_close(seen[0].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-6 * float(x.abs().max()) ** 2)
    torch.testing.assert_close(
        seen[1].double(), (y - x).T @ x / len(x), rtol=1e-4, atol=1e-5 * float(x.abs().max()) ** 2
    )
    torch.testing.assert_close(
        seen[2].double(), matrix.detach().double() @ (y - x).T @ x / len(x), rtol=1e-3,
        atol=1e-6 * float(x.abs().max()) ** 2,
    )  # fmt: skip


def test_folder_and_file_give_the_same_tensors(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """Rows of queries and keys stand in another order in the file, which compensation does not see."""
    gptq(folders["smollm"], tmp_path / "folder.gguf", token_embedding_type="f32", output_tensor_type="f32")
    gptq(files["smollm"], tmp_path / "file.gguf", token_embedding_type="f32", output_tensor_type="f32")
    from_folder, from_file = tensors(tmp_path / "folder.gguf"), tensors(tmp_path / "file.gguf")
    assert from_folder == from_file


def test_threads_do_not_change_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    for threads in (1, 2, 5):
        gptq(files["llama"], tmp_path / f"{threads}.gguf", threads=threads)
    one = (tmp_path / "1.gguf").read_bytes()
    assert (tmp_path / "2.gguf").read_bytes() == one
    assert (tmp_path / "5.gguf").read_bytes() == one


def test_interrupted_work_goes_on_and_gives_the_same_file(files: dict[str, Path], tmp_path: Path) -> None:
    gptq(files["llama"], tmp_path / "whole.gguf")
    target = tmp_path / "model.gguf"

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("layer 2 of 2: ffn_down"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gptq(files["llama"], target, progress=interrupt)
    assert not target.exists()
    assert gptq_encoder.ENCODER.work_folder(target).is_dir()
    with pytest.raises(UserError, match="--damping differ"):
        gptq(files["llama"], target, damping=0.05)
    steps: list[str] = []
    gptq(files["llama"], target, progress=lambda what, done, total: steps.append(what))
    assert not any(step.startswith("layer 1 ") for step in steps)
    assert any(step.startswith("layer 2 ") for step in steps)
    assert target.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not gptq_encoder.ENCODER.work_folder(target).exists()


def test_force_gives_up_other_work(files: dict[str, Path], tmp_path: Path) -> None:
    folder = gptq_encoder.ENCODER.work_folder(tmp_path / "model.gguf")
    Checkpoint(folder, {"something": "else"}, False)
    gptq(files["llama"], tmp_path / "model.gguf", force=True)
    assert not folder.exists()


def test_checkpoint_gives_back_what_it_was_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    listed = native.select_outliers(rng.standard_normal((8, 64)).astype(np.float32), 0.01)
    data = rng.integers(0, 256, (8, 34), dtype=np.uint8)
    hidden = (torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
    checkpoint = Checkpoint(tmp_path / "work", {"a": 1}, False)
    checkpoint.save(0, {"x": Encoded(data, listed), "y": Encoded(data[:2], None, "because")}, hidden)
    again = Checkpoint(tmp_path / "work", {"a": 1}, False)
    assert again.finished() == 1
    x, y = again.read(0, "x"), again.read(0, "y")
    assert np.array_equal(x.data, data)
    assert x.outliers is not None
    assert np.array_equal(x.outliers.packed(), listed.packed())
    assert (y.outliers, y.why_not) == (None, "because")
    assert again.why_not(0) == {"x": None, "y": "because"}
    assert all(torch.equal(a, b) for a, b in zip(again.activations(0), hidden, strict=True))


def test_fused_experts_fall_back_and_are_listed(folders: dict[str, Path], tmp_path: Path) -> None:
    report = gptq(folders["qwen3moe"], tmp_path / "moe.gguf")
    listed = {t.name: t.not_compensated or "" for t in report.not_compensated}
    assert set(listed) == {f"blk.{i}.ffn_{part}_exps.weight" for i in range(2) for part in ("gate", "up", "down")}
    assert all(("unweighted" in why) == ("down" in name) for name, why in listed.items())
    assert {types(tmp_path / "moe.gguf")[name] for name in listed} == {"BOF4_S"}
    convert(folders["qwen3moe"], tmp_path / "plain.gguf", type="BOF4_S", encoder="search")
    plain, made = tensors(tmp_path / "plain.gguf"), tensors(tmp_path / "moe.gguf")
    for name in listed:  # the mean squares of the inputs count
        assert (made[name] == plain[name]) == ("down" in name)


def test_layers_behind_those_that_are_run_are_listed(folders: dict[str, Path], tmp_path: Path) -> None:
    """GLM 4 MoE: the layer of multi-token prediction has an attention, experts, embeddings and a head of its own."""
    report = gptq(folders["glm4moe"], tmp_path / "glm.gguf", pure=True)
    whys = {t.name: t.not_compensated for t in report.not_compensated}
    ours = {t.name for t in report.tensors if t.qtype == "BOF4_S"}
    behind = {name for name in ours if name.startswith("blk.2.")}
    assert {"blk.2.nextn.eh_proj.weight", "blk.2.attn_q.weight", "blk.2.ffn_up_exps.weight"} <= behind
    assert behind | {"token_embd.weight"} <= whys.keys()
    assert all("multi-token prediction" in whys[name] for name in behind)
    assert "no decoder layer" in whys["token_embd.weight"]
    convert(
        folders["glm4moe"], tmp_path / "plain.gguf", type="BOF4_S", token_embedding_type="q8_0",
        output_tensor_type="q5_0",
    )  # fmt: skip
    found = types(tmp_path / "plain.gguf")
    assert found["blk.2.nextn.embed_tokens.weight"] == found["token_embd.weight"] == "Q8_0"
    assert found["blk.2.nextn.shared_head_head.weight"] == found["output.weight"] == "Q5_0"
    assert found["blk.2.nextn.eh_proj.weight"] == "BOF4_S"


def test_samples_longer_than_the_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    limit = r"gpt2\d*: the model reads at most 96 tokens .* --calibration-length 96 or less"
    with pytest.raises(UserError, match=limit):
        gptq(folders["gpt2"], tmp_path / "x.gguf", sample_length=97)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_too_large_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    """One of 64 neighbours that are as large, so that it is no outlier."""
    source = tmp_path / "large.gguf"
    source.write_bytes(files["llama"].read_bytes())
    (tensor,) = (t for t in open_model(source).tensors if t.name == "blk.0.attn_q.weight")
    with source.open("r+b") as file:
        file.seek(tensor.offset + 4 * tensor.shape[1] * 3)
        file.write(np.tile(np.array([1e5, -1e5], np.float32), 32).tobytes())
    with pytest.raises(UserError, match=r"large.gguf: tensor blk.0.attn_q.weight .* \[3, 0\] .* too large for BOF4_S"):
        gptq(source, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_outputs_are_nearer_to_the_unquantized_model_than_with_search(folders: dict[str, Path], tmp_path: Path) -> None:
    """On tokens that calibration did not see: the first layer's output, all its matrices quantized."""
    source = folders["llama"]
    gptq(source, tmp_path / "gptq.gguf", samples=16, sample_length=128, opq=("off",))
    convert(source, tmp_path / "search.gguf", type="BOF4_S", encoder="search", opq=("off",))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    other = Path(__file__).with_name("test_patch.py")
    tokens = make_samples(tokenizer, [(other, tokens_of(read_files(other), tokenizer))], 4, 100).tokens
    outputs = []
    for path in (source, tmp_path / "gptq.gguf", tmp_path / "search.gguf"):
        skeleton, weights = skeleton_of(path)
        with torch.inference_mode():
            # the embeddings of the source, so that only the layer differs
            plain, plain_weights = skeleton_of(source)
            inputs = first_inputs(plain, lambda names, p=plain, w=plain_weights: w.fill(p, names), tokens)  # type: ignore[misc]
            prefix = f"{skeleton.layers_name}.0."
            weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[0].named_parameters()])
            outputs.append(skeleton.layers[0](inputs.hidden, **inputs.arguments[0]))
    errors = [float((found - outputs[0]).square().mean()) for found in outputs[1:]]
    assert errors[0] < 0.9 * errors[1]


def test_passes_that_wait_give_the_bytes_of_those_that_begin_anew(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All samples, two of the four, and none."""
    contents = []
    for i, waiting in enumerate((driver._WAITING_BYTES, 2 * 4 * 48 * 6 * 128 * 2, 0)):
        monkeypatch.setattr(driver, "_WAITING_BYTES", waiting)
        gptq(files["llama"], tmp_path / f"{i}.gguf")
        contents.append((tmp_path / f"{i}.gguf").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_a_module_that_is_not_called_is_no_deadlock(folders: dict[str, Path]) -> None:
    skeleton, weights = skeleton_of(folders["llama"])
    with torch.inference_mode():
        inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), torch.arange(80).reshape(2, 40))
        prefix = f"{skeleton.layers_name}.0."
        weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[0].named_parameters()])
        workers = Workers(2, torch.device("cpu"))
        layer = Layer(skeleton.layers[0], inputs.arguments[0], workers)
        hidden, other = inputs.hidden, Layer(layer.module, layer.arguments, workers)
        with layer.passing(hidden, 2), pytest.raises(RuntimeError, match="was not called"):
            layer.moments("mlp.down_proj", hidden, other, hidden)
            layer.moments("self_attn.q_proj", hidden, other, hidden)  # the passes are behind it
        assert layer.passes == []
        with layer.passing(hidden, 2):  # ends while they wait
            layer.moments("self_attn.q_proj", hidden, other, hidden)
        workers.close()


def test_wide_layers_have_three_tokens_for_each_input() -> None:
    assert [enough_samples(inputs, 512) for inputs in (64, 5461, 5462, 8960, 14336)] == [32, 32, 64, 64, 96]
    assert enough_samples(14336, 2048) == 32


def test_samples_are_spread_over_the_text() -> None:
    class Words:
        """A tokenizer of numbers, which begins with 7."""

        def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
            ids = [int(word) if word.isdigit() else 1 for word in text.split()]
            return type("Encoding", (), {"input_ids": [7, *ids] if add_special_tokens else ids})

    text = [(Path("text"), range(100, 200))]
    made = make_samples(Words(), text, 3, 21)
    assert [row[:2].tolist() for row in made.tokens] == [[7, 100], [7, 140], [7, 180]]
    assert made.tokens[2, -1] == 199
    assert make_samples(Words(), text, 50, 21).count == 5
    with pytest.raises(UserError, match="100 tokens, less than one sample of 200"):
        make_samples(Words(), text, 1, 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "search"}, "--encoder search runs no model"),
        ({"damping": 1.0}, "--damping 1.0"),
        ({"samples": 0}, "--calibration-samples"),
        ({"device": "nonsense"}, "--device nonsense"),
        ({"calibration": "missing.txt"}, "missing.txt cannot be read"),
        ({"sample_length": 10**6}, "the model reads at most 256 tokens"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        gptq(files["llama"], tmp_path / "x.gguf", **options)
    assert not (tmp_path / "x.gguf").exists()


def test_a_model_that_is_no_decoder_is_refused(minilm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--encoder search"):
        gptq(minilm_folder, tmp_path / "x.gguf")
