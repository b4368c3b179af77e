from dataclasses import replace
from hashlib import blake2b

from textmill_router.media.media_item import MediaItem
from textmill_router.request import GenerationRequest, RequestId, token_array
from textmill_router.scheduler.prefix_cache import PrefixCache, block_hash, root_hash
from textmill_router.scheduler.request_state import RequestState

from tests.fakes.media_items import image_digest, make_image, with_spans


def make_state(
    ids: list[int], *, outputs: list[int] | None = None, salt: bytes = b"", adapter: tuple[str, bytes] = ("", b"")
) -> RequestState:
    name, digest = adapter
    request = GenerationRequest(
        request_id=RequestId(1),
        prompt_ids=token_array(ids),
        max_new_tokens=8,
        arrival_s=0.0,
        cache_salt=salt,
        adapter_name=name,
        adapter_digest=digest,
    )
    state = RequestState(request)
    for token in outputs or []:
        state.output_ids.append(token)
        state.num_tokens += 1
    return state


def make_cache(num_blocks: int = 8) -> PrefixCache:
    return PrefixCache(num_blocks=num_blocks, block_size=2)


def compute(cache: PrefixCache, state: RequestState, num_computed: int) -> None:
    """Count tokens as computed, as a result would."""
    missing = -(-num_computed // 2) - len(state.block_ids)
    state.block_ids.extend(cache.pool.allocate(max(missing, 0)))
    state.num_computed_tokens = num_computed
    cache.index_computed(state)


def test_rule_12_hashes_are_chained_blake2b_of_sixteen_bytes_over_salt_and_ids():
    root = root_hash(b"tenant")
    assert len(root) == 16
    assert root != root_hash(b"")
    ids = b"\x01\x00\x00\x00\x02\x00\x00\x00"
    assert block_hash(root, ids) == blake2b(root + ids, digest_size=16).digest()
    chain = make_cache().chain_of(make_state([1, 2, 1, 2], salt=b"tenant"), 2)
    assert chain == [block_hash(root, ids), block_hash(block_hash(root, ids), ids)]


def test_rule_12_a_chain_runs_through_prompt_and_output_as_one_row():
    cache = make_cache()
    whole = cache.chain_of(make_state([1, 2, 3, 4, 5, 6]), 3)
    for cut in range(1, 6):
        ids = [1, 2, 3, 4, 5, 6]
        assert cache.chain_of(make_state(ids[:cut], outputs=ids[cut:]), 3) == whole


def test_rule_12_a_prefix_computed_with_the_long_rotary_table_is_another_prefix():
    cache = PrefixCache(num_blocks=8, block_size=2, rope_border=12)
    at_border, beyond = make_state([1, 2, 3, 4]), make_state([1, 2, 3, 4, 5])  # each may get 8 output tokens
    compute(cache, at_border, 4)
    assert cache.lookup(beyond) == []
    compute(cache, beyond, 4)
    assert cache.lookup(make_state([1, 2, 3, 4, 5, 6])) == beyond.block_ids[:2]
    assert cache.lookup(make_state([1, 2, 3])) == at_border.block_ids[:1]


def test_rule_12_no_block_is_shared_between_the_base_model_and_an_adapter_or_two_digests_of_one_name():
    ids, digest, other = [1, 2, 3, 4, 5], b"d" * 16, b"e" * 16
    cache = make_cache(32)
    kinds = {
        "base": {},
        "adapter": {"adapter": ("a", digest)},
        "reloaded": {"adapter": ("a", other)},
        "salted": {"salt": b"tenant"},
        "salted adapter": {"adapter": ("a", digest), "salt": b"tenant"},
        "salt that looks like a digest": {"salt": digest},
    }
    states = {kind: make_state(ids, **facts) for kind, facts in kinds.items()}  # type: ignore[arg-type]
    for kind, state in states.items():
        assert cache.lookup(state) == [], kind
        compute(cache, state, 4)
    for kind, facts in kinds.items():
        assert cache.lookup(make_state(ids, **facts)) == states[kind].block_ids[:2], kind  # type: ignore[arg-type]
    assert len({tuple(state.block_ids) for state in states.values()}) == len(kinds)


def test_rule_12_two_names_of_one_digest_share_blocks():
    cache = make_cache()
    first = make_state([1, 2, 3, 4, 5], adapter=("a", b"d" * 16))
    compute(cache, first, 4)
    assert cache.lookup(make_state([1, 2, 3, 4, 5], adapter=("b", b"d" * 16))) == first.block_ids[:2]


def test_rule_12_the_root_of_the_base_model_is_what_it_was_without_adapters():
    person = b"textmill-prefix"
    assert root_hash(b"tenant") == blake2b(b"tenant", digest_size=16, person=person).digest()
    assert root_hash(b"tenant", adapter_digest=b"d" * 16) == (
        blake2b(b"d" * 16 + b"tenant", digest_size=16, person=b"textmill-adapter").digest()
    )


def test_rule_09_a_block_is_found_once_all_its_places_are_computed():
    cache = make_cache()
    writer, reader = make_state([1, 2, 3, 4, 5]), make_state([1, 2, 3, 4, 5])
    compute(cache, writer, 3)
    assert cache.lookup(reader) == writer.block_ids[:1]
    compute(cache, writer, 4)
    assert cache.lookup(reader) == writer.block_ids[:2]


def test_rule_10_a_lookup_leaves_one_token():
    cache = make_cache()
    compute(cache, make_state([1, 2, 3, 4]), 4)
    assert len(cache.lookup(make_state([1, 2, 3, 4]))) == 1
    assert len(cache.lookup(make_state([1, 2, 3, 4, 5]))) == 2


def test_rule_09_of_two_equal_blocks_the_second_stays_private():
    cache = make_cache()
    first, second = make_state([1, 2, 3]), make_state([1, 2, 3])
    compute(cache, first, 2)
    compute(cache, second, 2)
    assert cache.lookup(make_state([1, 2, 3])) == first.block_ids
    cache.pool.release(second.block_ids)
    assert cache.pool.num_cached == 0


def test_rule_11_two_blocks_in_writing_are_worth_waiting_for_and_one_is_not():
    cache = make_cache()
    writer = make_state([1, 2, 3, 4, 5])
    cache.start_writing(writer)
    waiting = make_state([1, 2, 3, 4, 5])
    assert cache.lookup(waiting) == []
    held_for = cache.hold_hash(waiting, 0)
    assert held_for is not None
    assert cache.is_being_written(held_for)
    short = make_state([1, 2, 3, 4])  # could share only one block
    cache.lookup(short)
    assert cache.hold_hash(short, 0) is None
    compute(cache, writer, 2)
    assert cache.hold_hash(waiting, 1) is None
    cache.stop_writing(writer)
    assert not cache.is_being_written(held_for)


def test_rule_19_forgotten_blocks_and_what_follows_them_are_not_found():
    cache = make_cache()
    bad = make_state([1, 2, 3, 4, 5])
    compute(cache, bad, 4)
    follower = make_state([1, 2, 3, 4, 5, 6, 7])
    follower.num_indexed_blocks = 2
    follower.block_ids = list(bad.block_ids)
    cache.pool.share(bad.block_ids)
    compute(cache, follower, 6)
    assert len(cache.lookup(make_state([1, 2, 3, 4, 5, 6, 7]))) == 3
    cache.forget(bad.chain[1:2])
    assert len(cache) == 1
    again = make_state([1, 2, 3, 4, 5, 6, 7])
    compute(cache, again, 4)
    assert len(cache.lookup(make_state([1, 2, 3, 4, 5, 6, 7]))) == 2
    cache.pool.check([bad.block_ids, follower.block_ids, again.block_ids])


def test_an_evicted_block_is_not_found():
    cache = make_cache(num_blocks=2)
    writer = make_state([1, 2, 3])
    compute(cache, writer, 2)
    cache.pool.release(writer.block_ids)
    cache.pool.allocate(2)
    assert cache.lookup(make_state([1, 2, 3])) == []
    assert len(cache) == 0


def test_a_cache_that_is_switched_off_finds_and_holds_nothing():
    cache = PrefixCache(num_blocks=8, block_size=2, is_enabled=False)
    writer = make_state([1, 2, 3, 4, 5])
    cache.start_writing(writer)
    compute(cache, writer, 4)
    assert cache.lookup(make_state([1, 2, 3, 4, 5])) == []
    assert cache.hold_hash(make_state([1, 2, 3, 4, 5]), 0) is None
    assert len(cache) == 0


def test_rule_11_nobody_waits_for_a_block_whose_parent_nobody_writes():
    cache = make_cache()
    writer = make_state([1, 2, 3, 4, 5])
    cache.start_writing(writer)
    compute(cache, writer, 2)
    cache.forget(writer.chain[:1])
    assert cache.is_being_written(writer.chain[1])
    assert cache.hold_hash(make_state([1, 2, 3, 4, 5]), 0) is None


def test_rule_11_the_writer_stays_known_when_one_who_writes_the_same_leaves():
    cache = make_cache()
    first, second = make_state([1, 2, 3, 4, 5]), make_state([1, 2, 3, 4, 5])
    cache.start_writing(first)
    cache.start_writing(second)
    cache.stop_writing(second)
    assert cache.is_being_written(first.chain[0])
    cache.stop_writing(first)
    assert not cache.is_being_written(first.chain[0])


def test_a_lookup_that_finds_nothing_hashes_the_beginning_only():
    state = make_state(list(range(1000)))
    assert make_cache().lookup(state) == []
    assert len(state.chain) == 16


def test_rule_19_what_was_computed_after_a_bad_block_is_forgotten_to_the_last():
    cache = make_cache()
    bad = make_state([1, 2, 3, 4, 5, 6, 7])
    compute(cache, bad, 6)
    cache.forget(bad.chain[:1])
    assert len(cache) == 0
    healthy = make_state([1, 2, 3, 4])
    compute(cache, healthy, 4)
    assert cache.lookup(make_state([1, 2, 3, 4, 5, 6, 7])) == healthy.block_ids


IMAGE_ID = 9


def pictured(ids: list[int], *images: MediaItem, block_size: int = 2) -> list[bytes]:
    """Return the chain of all full blocks of a prompt with images."""
    request = GenerationRequest(RequestId(1), token_array(ids), max_new_tokens=8, arrival_s=0.0, media=images)
    cache = PrefixCache(num_blocks=8, block_size=block_size)
    return cache.chain_of(RequestState(request), len(ids) // block_size)


def test_rule_12_a_block_that_touches_images_is_hashed_with_their_digests_and_rows():
    """Blocks [1, I], [I, I], [2, I], [3, 4]: the image `a` has rows 0 to 2, and `b` has row 0."""
    ids = [1, *[IMAGE_ID] * 3, 2, IMAGE_ID, 3, 4]
    chain = pictured(ids, make_image("a", 1, 3), make_image("b", 5, 1))
    a, b = image_digest("a"), image_digest("b")
    parent = root_hash(b"")
    for number, media in enumerate((a + bytes([0, 0, 0, 0]), a + bytes([1, 0, 0, 0]), b + bytes(4), b"")):
        parent = block_hash(parent, token_array(ids[2 * number : 2 * number + 2]).tobytes() + media)
        assert chain[number] == parent


def test_rule_12_two_images_one_pixel_apart_share_no_block():
    ids = [1, 2, 3, *[IMAGE_ID] * 6, 4, 5, 6]
    one, other = pictured(ids, make_image("a", 3, 6)), pictured(ids, make_image("a, one pixel apart", 3, 6))
    assert one[0] == other[0]  # [1, 2] stands before the image
    assert not set(one[1:]) & set(other[1:])  # blocks behind the image follow from the image too


def test_rule_12_an_image_at_another_place_or_with_other_rows_is_another_block():
    """Placeholders that stand alone in a block, as the tiles of an image do."""
    ids = [IMAGE_ID, IMAGE_ID]
    whole = make_image("a", 0, 2)
    [first] = pictured(ids, whole)
    [second] = pictured(ids, replace(whole, spans=(replace(whole.spans[0], first_row=2),)))
    [two_spans] = pictured(ids, with_spans(whole, (0, 1), (1, 1)))
    [text] = pictured(ids)
    assert len({first, second, two_spans, text}) == 4


def test_rule_12_the_output_behind_images_extends_the_chain():
    request = GenerationRequest(
        RequestId(1), token_array([IMAGE_ID, IMAGE_ID, 3]), 8, 0.0, media=(make_image("a", 0, 2),)
    )
    state = RequestState(request)
    before = make_cache().chain_of(state, 1)[:]
    state.output_ids.append(5)
    state.num_tokens += 1
    assert make_cache().chain_of(state, 2) == [*before, block_hash(before[0], token_array([3, 5]).tobytes())]
