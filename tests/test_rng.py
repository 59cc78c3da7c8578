"""The random streams: SplitMix64 to the bit, independent of order, uniform, and apart from torch's own generator."""

from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from tunescope.rng import Stream
from tunescope.tasks.world.batches import preference_batch, pretraining_batch
from tunescope.tasks.world.prompts import Kind, sample_prompts

CPU = torch.device("cpu")
MASK = (1 << 64) - 1
KEYS = st.integers(-(1 << 63), (1 << 63) - 1)


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator (Steele, Lea & Flood 2014; Vigna's splitmix64.c), in Python's own integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def unsigned(bits: torch.Tensor) -> list[int]:
    return [b & MASK for b in bits.flatten().tolist()]


@pytest.mark.parametrize(
    ("seed", "published"),
    [
        (
            1234567,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423,
                4593380528125082431,
                16408922859458223821,
            ],
        ),
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
    ],
)
def test_bits_are_the_published_vectors(seed, published):
    assert unsigned(Stream(seed).bits((len(published),), CPU)) == published


@given(KEYS, st.integers(0, 40))
def test_bits_are_splitmix64_for_every_key(key, count):
    assert unsigned(Stream(key).bits((count,), CPU)) == splitmix64(key & MASK, count)


@given(KEYS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_shape_only_arranges_the_elements(key, a, b, c):
    stream = Stream(key)
    assert torch.equal(stream.bits((a, b, c), CPU).flatten(), stream.bits((a * b * c,), CPU))
    assert torch.equal(stream.bits((a * b * c,), CPU)[: a * b], stream.bits((a * b,), CPU))


@given(KEYS)
def test_uniform_keeps_the_upper_53_bits(key):
    values = Stream(key).uniform((20,), CPU)
    assert values.dtype == torch.float64
    assert values.tolist() == [(z >> 11) / 2**53 for z in splitmix64(key & MASK, 20)]


@given(KEYS, st.integers(1, 2**31 - 1))
def test_integers_scale_the_upper_31_bits(key, high):
    values = Stream(key).integers(high, (20,), CPU)
    assert values.tolist() == [((z >> 33) * high) >> 31 for z in splitmix64(key & MASK, 20)]
    assert all(0 <= v < high for v in values.tolist())


@given(KEYS, st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=6))
def test_integers_take_a_tensor_of_highs(key, highs):
    stream, rows = Stream(key), torch.tensor(highs)[:, None]
    wide = stream.integers(rows, (len(highs), 4), CPU)
    for i, high in enumerate(highs):
        assert torch.equal(wide[i], stream.integers(high, (len(highs), 4), CPU)[i])


def test_uniform_is_uniform(fit):
    values = Stream.named(0, "uniform").uniform((50_000,), CPU).numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert kstest(values, "uniform").pvalue > 1e-4
    bins = Counter((values * 64).astype(int).tolist())
    assert fit(bins, dict.fromkeys(range(64), 1 / 64)) > 1e-4


@pytest.mark.parametrize("high", [2, 3, 10, 97])
def test_integers_are_uniform(high, fit):
    counts = Counter(Stream.named(0, "integers", high).integers(high, (30_000,), CPU).tolist())
    assert fit(counts, dict.fromkeys(range(high), 1 / high)) > 1e-4


def test_integers_are_uniform_for_every_high_of_a_tensor(fit):
    highs = torch.tensor([[3], [7], [20]])
    rows = Stream.named(0, "rows").integers(highs, (3, 20_000), CPU)
    for high, row in zip(highs.flatten().tolist(), rows.tolist(), strict=True):
        assert fit(Counter(row), dict.fromkeys(range(high), 1 / high)) > 1e-4


def test_neighbouring_elements_are_independent(fit):
    pairs = Stream.named(0, "pairs").integers(6, (40_000, 2), CPU).tolist()
    assert fit(Counter(map(tuple, pairs)), {(a, b): 1 / 36 for a in range(6) for b in range(6)}) > 1e-4


def test_streams_of_consecutive_batches_are_independent(fit):
    stream = Stream.named(0, "batches")
    first = [int(stream("batch", i).integers(8, (1,), CPU)) for i in range(4_000)]
    pairs = Counter(zip(first[0::2], first[1::2], strict=True))
    assert fit(pairs, {(a, b): 1 / 64 for a in range(8) for b in range(8)}) > 1e-4


def test_normal_is_normal():
    values = Stream.named(0, "normal").normal((50_000,), CPU)
    assert values.dtype == torch.float64
    assert abs(values.mean().item()) < 4 / 50_000**0.5
    assert abs(values.var().item() - 1) < 4 * (2 / 50_000) ** 0.5
    assert kstest(values.numpy(), "norm").pvalue > 1e-4
    assert abs(torch.corrcoef(values.view(2, -1))[0, 1].item()) < 4 / 25_000**0.5


@given(KEYS)
def test_normal_is_the_quantile_of_the_uniform(key):
    stream = Stream(key)
    assert norm.cdf(stream.normal((20,), CPU).numpy()) == pytest.approx(stream.uniform((20,), CPU).numpy(), abs=1e-12)


@given(KEYS, st.integers(1, 9), st.integers(1, 9))
def test_normal_is_the_same_whatever_came_before(key, some, more):
    stream = Stream(key)
    first = stream.normal((some,), CPU)
    stream("other").normal((3,), CPU)
    torch.randn(3)
    again = stream.normal((some + more,), CPU)
    assert torch.equal(again[:some], first)
    assert torch.equal(stream.normal((1, some), CPU)[0], first)


# Keys whose first 64 bits are all zero and all one: SplitMix64 read backwards.
@pytest.mark.parametrize(("key", "uniform"), [(7046029254386353131, 0.0), (3558559446808474027, 1 - 2**-53)])
def test_normal_is_finite_at_the_ends(key, uniform):
    assert Stream(key).uniform((1,), CPU).item() == uniform
    assert 8 < abs(Stream(key).normal((1,), CPU).item()) < 9


def test_choose_is_uniform_among_the_options(fit):
    options = torch.tensor([5, 7, 11])
    chosen = Stream.named(0, "choose").choose(options, (100, 90))
    assert chosen.shape == (100, 90)
    assert fit(Counter(chosen.flatten().tolist()), {5: 1 / 3, 7: 1 / 3, 11: 1 / 3}) > 1e-4


@given(st.permutations(range(6)))
def test_batches_do_not_depend_on_the_order_of_asking(order):
    stream = Stream.named(3, "order")
    expected = [stream("batch", i).bits((4,), CPU).tolist() for i in range(6)]
    asked = {i: stream("batch", i).bits((4,), CPU).tolist() for i in order}
    assert [asked[i] for i in range(6)] == expected


SCOPES = st.lists(st.one_of(st.integers(-5, 99), st.text(max_size=5)), max_size=4).map(tuple)


@given(SCOPES, SCOPES)
def test_different_scopes_are_different_streams(one, other):
    a, b = Stream.named(0, *one), Stream.named(0, *other)
    assert (a == b) == (one == other)
    assert (a("x") == b("x")) == (one == other)


def test_scopes_that_read_alike_are_different_streams():
    root = Stream.named(0)
    alike = [root("ab", "c"), root("a", "bc"), root("abc"), root("ab")("c"), root(1), root("1"), root(1, 1), root(11)]
    assert len({s.key for s in alike}) == len(alike)
    assert Stream.named(0, "a") != Stream.named(1, "a")


def test_keys_are_the_same_on_every_machine():
    """BLAKE2b of the scope as Python writes it: a study is the same wherever and whenever it runs."""
    assert Stream.named(0, "pretraining").key == 8207974198983595158
    digest = blake2b(b"(8207974198983595158, 'batch', 7)", digest_size=8).digest()
    assert Stream.named(0, "pretraining")("batch", 7).key == int.from_bytes(digest, "little", signed=True)


def test_numbers_of_numpy_are_scopes_as_those_of_python():
    root = Stream.named(3, "x", 7, 0.5)
    assert Stream.named(3, np.str_("x"), np.int32(7), np.float64(0.5)) == root
    assert root(np.int64(3)) == root(3) != root(3.0)


def test_the_global_generator_is_neither_moved_nor_read(tiny):
    def everything() -> list[torch.Tensor]:
        stream = Stream.named(0, "global")
        prompts = [sample_prompts(tiny, kind, 5, stream, 0.5 * kind.has_strength).prompt for kind in Kind]
        return [
            *prompts,
            pretraining_batch(tiny, 5, stream, 0.5).tokens,
            preference_batch(tiny, 3, 3, stream).chosen,
            stream.uniform((3,), CPU),
        ]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = everything()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))
