"""`tunescope weights` on a pair with the true shapes of Llama 3 8B: seconds a matrix, and the peak of resident memory.

python benchmarks/weights.py [--layers 1] [--device cpu]

The pair is made here, layer by layer: normal weights in bfloat16, and in each a change of rank 8, which must be found.
Memory does not depend on the number of layers; 32, the whole model, takes 28 GB of disk.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from tunescope.records.tables import read_records
from tunescope.study.weights import compare_weights

RANK, SIZE = 8, 0.02  # of the planted changes; their norms as a share of the matrix's
WIDTH, HIDDEN, KEYS = 4096, 14336, 1024
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}


def make(folder: Path, layers: int) -> None:
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    index: dict[str, str] = {}
    for name in ("base", "tuned"):
        config.save_pretrained(folder / name)
    for layer in range(layers):
        torch.manual_seed(layer)
        tensors = {f"model.layers.{layer}.{n}.weight": (0.02 * torch.randn(s)).bfloat16() for n, s in SHAPES.items()}
        file = f"model-{layer:05d}.safetensors"
        index |= dict.fromkeys(tensors, file)
        save_file(tensors, folder / "base" / file)
        for name, each in tensors.items():
            w, delta = each.float(), torch.randn(len(each), RANK) @ torch.randn(RANK, each.shape[1])
            tensors[name] = (w + SIZE * w.norm() / delta.norm() * delta).bfloat16()
        save_file(tensors, folder / "tuned" / file)
    for name in ("base", "tuned"):
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, options.layers)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        compare_weights(str(folder / "base"), str(folder / "tuned"), folder / "out", device=options.device)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        records = read_records(folder / "out" / "records.parquet").query("control == ''")
        matrices = options.layers * len(SHAPES)
        print(f"{matrices} matrices of a layer of Llama 3 8B: {seconds / matrices:.1f} s each, {seconds:.0f} s in all")
        print(f"peak of resident memory: {peak / 2**20:.2f} GiB ({before / 2**20:.2f} GiB after making the pair)")
        for metric in ("relative_norm", "stable_rank", "null_share"):
            print(metric, records[records["metric"] == metric].groupby("site")["value"].mean().round(4).to_dict())


if __name__ == "__main__":
    main()
