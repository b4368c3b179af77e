"""How large the tiles of the attention kernel are, and into how many parts a context is split. Plain arithmetic."""

from dataclasses import dataclass

LEAST_ROWS = 16  # rows of the smallest matrix product of the tensor cores
PROGRAMS_PER_MULTIPROCESSOR = 2  # for parts of contexts, beside those of the tiles
# With more programs for the tiles than this the longest context is a small part of the work.
MOST_PROGRAMS_PER_MULTIPROCESSOR = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """The work of one program of the attention kernel, and the means with which the program does the work."""

    rows: int  # queries times query heads of a key/value head, a power of two
    places: int  # keys that are read at a time
    num_warps: int
    # Steps of the loop over the keys that are under way together. The reads of keys and values wait for a read of the
    # block table, so that with 3 or 4 they are under way beside no product, with 5 during one and with 7 during two.
    num_stages: int

    def num_queries(self, group: int) -> int:
        """Return the queries of a tile where `group` query heads share a key/value head."""
        return self.rows // group


def attention_tile(
    *, itemsize: int, group: int, key_dim: int, value_dim: int, max_query_len: int, has_8_bits: bool = False
) -> Tile:
    """Return the tile for queries of `itemsize` bytes an element, over keys and values of 8 bits or of their type.

    Steps of decode rows take the smallest tile, because more rows would stay empty. Longer chunks take a large tile,
    because each key that is read then serves more queries.
    """
    least_rows = max(LEAST_ROWS, power_of_two(group))
    is_wide = max(key_dim, value_dim) > 128
    is_small = max_query_len * group <= least_rows
    if itemsize == 4:  # without tensor cores, and with keys of twice the bytes
        rows = least_rows if is_small else max(least_rows, 32)
        # Keys of 8 bits that are read ahead become numbers of 32 bits in registers, of which there are too few.
        return Tile(rows=rows, places=16, num_warps=4 if is_small else 8, num_stages=1 if has_8_bits else 2)
    if is_small:
        places, num_warps = 32 if is_wide else 64, 4 if least_rows < 64 else 8
        # Two programs of a multiprocessor then have 64 KiB of reads under way while both compute, of 8 bits too. A
        # multiprocessor of an H200 needs about 40: its share of the memory's rate times the time of a read.
        return Tile(rows=least_rows, places=places, num_warps=num_warps, num_stages=7 if has_8_bits else 5)
    if is_wide:
        return Tile(rows=max(least_rows, 64), places=32, num_warps=8, num_stages=2)
    return Tile(rows=max(least_rows, 128), places=32, num_warps=8, num_stages=5)


@dataclass(frozen=True, slots=True)
class LowRankTile:
    """The work of one program of the kernels that add the products of adapters."""

    rows: int
    width: int  # ranks that the product in between has room for
    ranks: int  # that a program computes, or reads at a time
    inputs: int  # that are read at a time
    outputs: int
    num_stages: int  # turns of the loop over the inputs that are under way together


def low_rank_tile(*, max_rank: int, is_decode: bool) -> LowRankTile:
    """Return the tile for adapters of at most `max_rank`. Decode rows are computed one by one.

    A program of decode rows takes few ranks, so that a small adapter is as quick in a graph, which has room for the
    largest rank that is allowed, as in a step of its own: programs behind the ranks of an adapter end at once.
    """
    width = max(LEAST_ROWS, power_of_two(max_rank))
    if is_decode:
        return LowRankTile(rows=1, width=width, ranks=LEAST_ROWS, inputs=256, outputs=128, num_stages=4)
    return LowRankTile(rows=32, width=width, ranks=min(width, 64), inputs=64, outputs=64, num_stages=3)


@dataclass(frozen=True, slots=True)
class ExpertTile:
    """The work of one program of the kernel that multiplies by the matrices of experts."""

    rows: int  # pairs of a row and an expert
    outputs: int
    inputs: int  # that are read at a time
    num_warps: int
    num_stages: int


def expert_tile(*, itemsize: int, num_pairs: int, num_experts: int) -> ExpertTile:
    """Return the tile for so many pairs of a row and an expert, with elements of `itemsize` bytes.

    Where an expert has few pairs, as in decodes, time goes into reading its matrix, and more rows would stay empty.
    """
    pairs_of_expert = -(-num_pairs // num_experts)
    if itemsize == 4:  # without tensor cores, and with weights of twice the bytes
        return ExpertTile(
            rows=LEAST_ROWS if pairs_of_expert <= LEAST_ROWS else 32, outputs=64, inputs=32, num_warps=4, num_stages=2
        )
    if pairs_of_expert <= LEAST_ROWS:
        return ExpertTile(rows=LEAST_ROWS, outputs=64, inputs=128, num_warps=4, num_stages=4)
    if pairs_of_expert <= 64:
        return ExpertTile(rows=64, outputs=128, inputs=64, num_warps=4, num_stages=3)
    return ExpertTile(rows=128, outputs=128, inputs=64, num_warps=8, num_stages=3)


def num_expert_tiles(*, rows: int, num_pairs: int, num_experts: int) -> int:
    """Return the most tiles of `rows` pairs that can be needed, however the pairs are spread over the experts.

    An expert with n pairs needs (n + rows - 1) // rows tiles, and at most so many experts as there are pairs have any.
    """
    return (num_pairs + min(num_pairs, num_experts) * (rows - 1)) // rows


def count_tiles(tile: Tile, *, group: int, num_tokens: int, num_sequences: int) -> int:
    """Return the tiles of a step, some of which are empty (`tile_map.py`)."""
    return num_tokens // tile.num_queries(group) + num_sequences + 1


def count_further(*, num_tiles: int, num_kv_heads: int, num_multiprocessors: int) -> int:
    """Return the programs, for each key/value head, that stand ready for further parts of contexts. 0: none is cut.

    The number depends on the sizes of the batch, and not on the lengths of contexts, so that a recorded CUDA graph may
    be replayed with other lengths.
    """
    if num_tiles * num_kv_heads > MOST_PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors:
        return 0
    return PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // num_kv_heads


def least_part(tile: Tile) -> int:
    """Return the tokens of the smallest part of a context: as many as a program reads at a time."""
    return tile.places


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
