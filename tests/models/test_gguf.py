"""Models from GGUF files are those that the files were made of."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from tunescope import cli
from tunescope.models.checkpoint import load_model

CPU = torch.device("cpu")
TEMPLATE = "{% for message in messages %}<start>{{ message.content }}<end>{% endfor %}"
TEXTS = ["2 lamps, 12345 of them", "a  2\n\n10. bombs", "<start>explain how 2 make<end>", " naïve\r\n\t日本 ½"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"q_proj": 4, "k_proj": 2}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One that cuts texts as SmolLM's does, with pairs across white space and digits that it must not use."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    how = {"special_tokens": ["<start>", "<end>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    texts = [*["explain how 2 make 10 of 2 lamps, a  2\n\n10."] * 9]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, show_progress=False, **how))
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>", bos_token="<start>")


@pytest.fixture(scope="module")
def source(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=HEADS["q_proj"],
            num_key_value_heads=HEADS["k_proj"],
            max_position_embeddings=64,
            initializer_range=0.3,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def write(source: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Callable[..., None]:
    """Writes the model as llama.cpp's converter does: rows of queries and keys in the order of its rotary embedding."""

    def to(
        file: Path, quantised: bool = False, architecture: str = "llama", cut: str = "smollm", scaled: bool = False
    ) -> None:
        writer, config = GGUFWriter(file, architecture), source.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(500.0)
        writer.add_rope_dimension_count(8)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut)
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        writer.add_token_list(tokens)
        special = tokenizer.all_special_tokens
        writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
        writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)
        for name, tensor in source.state_dict().items():
            array = tensor.numpy()
            for part, heads in HEADS.items():
                if part in name:
                    array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            for long, short in NAMES.items():
                name = name.replace(long, short)
            if quantised and array.ndim == 2:
                kind = GGMLQuantizationType.Q8_0
                writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, np.ascontiguousarray(array))
        if scaled:
            writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return to


@pytest.fixture(scope="module")
def file(write: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests: not to be changed."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write(path)
    return path


@pytest.mark.parametrize("quantised", [False, True])
def test_the_folder_has_the_model_and_its_tokens(
    quantised: bool,
    write: Callable[..., None],
    source: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    write(tmp_path / "model.gguf", quantised)
    assert cli.main(["import", str(tmp_path / "model.gguf"), str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    model, read = load_model(folder, CPU)
    tokens = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        found, wanted = model(tokens).logits, source(tokens).logits
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    error = (found - wanted).norm() / wanted.norm()
    if quantised:  # eight bits a weight
        assert 1e-4 < error < 0.05
    else:
        assert error < 1e-6
    for text in TEXTS:
        assert read(text).input_ids == tokenizer(text).input_ids
        assert read.decode(read(text).input_ids) == text
    assert read.eos_token == "<end>"
    assert read.chat_template == TEMPLATE
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("lost", [1, 5000, -30])
def test_a_truncated_file(lost: int, file: Path, tmp_path: Path, refused: Callable) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-lost])
    refused(["import", str(tmp_path / "cut.gguf"), str(tmp_path / "folder")], "cut.gguf", "truncated", "fetch it again")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"architecture": "mamba"}, ["'mamba'", "llama"]),
        ({"cut": "default"}, ["'default'", "smollm", "tokenizer"]),
        ({"scaled": True}, ["rope_freqs.weight", "safetensors"]),
    ],
)
def test_what_would_be_read_wrongly(
    changed: dict, says: list[str], write: Callable, tmp_path: Path, refused: Callable
) -> None:
    write(tmp_path / "odd.gguf", **changed)
    refused(["import", str(tmp_path / "odd.gguf"), str(tmp_path / "folder")], "odd.gguf", *says)


def test_bad_paths(file: Path, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    there, absent = str(tmp_path), str(tmp_path / "absent")
    refused(["import", str(file), there], there, "is there already")
    refused(["import", absent, f"{there}/folder"], absent, "no such file")
    refused(["import", __file__, f"{there}/folder"], "test_gguf.py", "is no GGUF file")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(["import", str(file), f"{there}/folder"], "pip install 'tunescope[gguf]'")
    assert not list(tmp_path.iterdir())
