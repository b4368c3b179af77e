"""The counter generator: published vectors, statistics, and independence of the batch."""

import torch
from textmill_shard.sampling import noise


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.int64) for value in values)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def seeds(*values: int) -> torch.Tensor:
    return noise.seed_words(values, torch.device("cpu"))


def test_philox_gives_the_published_vectors():
    # Known answers for philox4x32-10 that come with the authors' Random123 library.
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        found = noise.philox(words(*counter), words(*key))
        assert tuple(int(word) for word in found) == expected


def test_uniform_is_even_over_ids_positions_and_seeds():
    num_draws, num_bins = 1 << 16, 256
    many = torch.arange(num_draws)
    one = torch.zeros(num_draws, dtype=torch.int64)
    draws = {
        "ids": noise.uniform(seeds(7), torch.tensor([3]), many.unsqueeze(0)).flatten(),
        "positions": noise.uniform(seeds(7).expand(num_draws, 2), many, one.unsqueeze(-1)).flatten(),
        "seeds": noise.uniform(seeds(*range(num_draws)), one, one.unsqueeze(-1)).flatten(),
    }
    expected = torch.full((num_bins,), num_draws / num_bins)
    for name, values in draws.items():
        assert float(values.min()) > 0.0, name
        assert float(values.max()) < 1.0, name
        counts = torch.histc(values, bins=num_bins, min=0.0, max=1.0)
        # 255 degrees of freedom: mean 255, deviation 22.6; five deviations either way.
        assert 142 < chi_square(counts, expected) < 368, name
        pairs = torch.corrcoef(torch.stack([values[:-1], values[1:]]))
        assert abs(float(pairs[0, 1])) < 5 / num_draws**0.5, name


def test_gumbel_has_its_mean_and_variance():
    values = noise.gumbel(seeds(1), torch.tensor([0]), torch.arange(1 << 18).unsqueeze(0))
    assert bool(torch.isfinite(values).all())
    assert abs(float(values.mean()) - 0.5772157) < 0.0125  # 5 standard errors: 1.2825 / 512
    assert abs(float(values.var()) - torch.pi**2 / 6) < 0.05


def test_both_halves_of_a_seed_count():
    ids = torch.arange(64).unsqueeze(0)
    position = torch.tensor([0])
    low = noise.uniform(seeds(5), position, ids)
    high = noise.uniform(seeds(5 + (1 << 32)), position, ids)
    largest = noise.uniform(seeds((1 << 64) - 1), position, ids)
    assert not bool((low == high).any())
    assert not bool((low == largest).any())


def test_noise_of_a_row_does_not_depend_on_its_neighbours():
    ids = torch.stack([torch.arange(8), torch.arange(8).flip(0), torch.full((8,), noise.TAIL_ID)])
    positions = torch.tensor([4, 0, 9])
    batch = noise.gumbel(seeds(11, 12, 13), positions, ids)
    for row, seed in enumerate((11, 12, 13)):
        alone = noise.gumbel(seeds(seed), positions[row : row + 1], ids[row : row + 1])
        assert torch.equal(batch[row], alone[0])
    # Nor on the column that an id stands in.
    reversed_row = noise.gumbel(seeds(12), positions[1:2], torch.arange(8).unsqueeze(0))
    assert torch.equal(batch[1].flip(0), reversed_row[0])
