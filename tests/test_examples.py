"""The examples run: here with hardly any steps, so that nothing is learnt."""

import subprocess
import sys
from pathlib import Path

from tunescope.models.checkpoint import load_model

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_english_pair_is_made(tmp_path: Path, cpu: object) -> None:
    command = [sys.executable, EXAMPLES / "english.py", "--out", tmp_path, "--steps", "2", "--tune-steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "held-out instructions" in done.stdout + done.stderr
    for name in ("base", "tuned", "benign"):
        model, tokenizer = load_model(tmp_path / name, cpu)  # type: ignore[arg-type]
        assert model.config.num_key_value_heads < model.config.num_attention_heads
        assert tokenizer.chat_template
