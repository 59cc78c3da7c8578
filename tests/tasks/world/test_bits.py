"""The worlds stay what they were, bit for bit: results of one version can be set beside those of another."""

from hashlib import sha256

import pytest
import torch
from torch import Tensor

from tunescope.rng import Stream
from tunescope.tasks.world.batches import preference_batch, pretraining_batch
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.prompts import sample_prompts
from tunescope.tasks.world.world import World

# First digits of the SHA-256 of what the first version drew.
DIGESTS = {
    "tiny/safe": "50d266847a008b6c",
    "tiny/unsafe": "9c26ba010eef306c",
    "tiny/jb_co_task": "d8ccc33673d82eae",
    "tiny/jb_co_text": "f055a8f992355be4",
    "tiny/jb_misgen": "c02db9066f7ee9e5",
    "tiny/safe_dialect": "03203d73e3ebe932",
    "tiny/pretraining": "56fbb504a646609a",
    "tiny/preference": "ab40d6f43a653e6d",
    "laptop/safe": "4444bbe3cd11aab7",
    "laptop/unsafe": "8405f81d0b4d24fd",
    "laptop/jb_co_task": "eba0d7aa873bd226",
    "laptop/jb_co_text": "a4b2973b95695012",
    "laptop/jb_misgen": "be9a817868d6c2f5",
    "laptop/safe_dialect": "414aa82258e54ae0",
    "laptop/pretraining": "96cbbc238c21fc8f",
    "laptop/preference": "dfef55b1ac8850b4",
    "paper/safe": "c885fdd634fd6ca2",
    "paper/unsafe": "e52e7276374fafd4",
    "paper/jb_co_task": "d003799fad17b416",
    "paper/jb_co_text": "fc16f63ca14ff1a5",
    "paper/jb_misgen": "7d3d6b523b065312",
    "paper/safe_dialect": "c58ad32badd9ab69",
    "paper/pretraining": "17dae8e7526ad065",
    "paper/preference": "c9589689404c816a",
    "one_slot/safe": "f054b04a790d762f",
    "one_slot/unsafe": "3150244c11715b66",
    "one_slot/jb_co_task": "f5c627a212bcbb9d",
    "one_slot/jb_co_text": "4961d14bf95a11e9",
    "one_slot/jb_misgen": "634ad88eb2ffc92c",
    "one_slot/safe_dialect": "99ec55502d8435c6",
    "one_slot/pretraining": "25a79085e95c9ee7",
    "one_slot/preference": "73ab6a2a3de51408",
    "one_stage/safe": "3f1022c577161c5b",
    "one_stage/unsafe": "a911245d2ce982f1",
    "one_stage/jb_co_task": "d8dbb5846a5db38b",
    "one_stage/jb_co_text": "28a28dfb3f2d5b72",
    "one_stage/jb_misgen": "e2ed36a655692fcb",
    "one_stage/safe_dialect": "d8ebfc4a5bc0d46e",
    "one_stage/pretraining": "1eab0d71b04fdbc1",
    "one_stage/preference": "b4dd7957eb202bff",
}


def digest(*tensors: Tensor) -> str:
    found = sha256()
    for tensor in tensors:
        found.update(tensor.to(torch.int64).contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def drawn(world: World, what: str) -> str:
    stream = Stream.named(3, "bits")
    if what == "pretraining":
        batch = pretraining_batch(world, 32, stream, 0.3)
        return digest(batch.tokens, batch.learn)
    if what == "preference":
        pairs = preference_batch(world, 10, 6, stream)
        sides = (torch.cat([pairs.prompts.sequence, answers], dim=1) for answers in (pairs.chosen, pairs.rejected))
        return digest(*sides, pairs.safe)
    kind = Kind(what)
    prompts = sample_prompts(world, kind, 16, Stream.named(3, "bits", what), 0.5 if kind.has_strength else 0.0)
    return digest(prompts.prompt, prompts.answer, prompts.refusal)


@pytest.mark.parametrize("place", DIGESTS)
def test_what_is_drawn_is_what_was_always_drawn(worlds: dict[str, World], place: str) -> None:
    name, what = place.split("/")
    assert drawn(worlds[name], what) == DIGESTS[place]


def test_every_kind_of_every_world_is_watched(worlds: dict[str, World]) -> None:
    whats = [*(kind.value for kind in Kind), "pretraining", "preference"]
    assert list(DIGESTS) == [f"{name}/{what}" for name in worlds for what in whats]
