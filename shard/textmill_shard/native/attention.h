// Attention over the block table: flash style, in tiles of 64 places that begin at multiples of 64, so that a
// token's result depends neither on its neighbours in the batch nor on how the prompt was cut.

#define TILE_PLACES 64
#define TARGET_ROWS 48  // query rows (tokens times heads of the group) that share one packing of K and V
#define NO_SCORE -3.0e38f

typedef struct {
  const void *query;  // elements [tokens, heads, key_dim]
  int64_t query_token_stride, query_head_stride;
  const void *keys, *values;  // elements [blocks, block_size, kv_heads, dim]
  void *out;                  // elements [tokens, heads, value_dim]
  int64_t out_token_stride, out_head_stride;
  int64_t heads, kv_heads, key_dim, value_dim, block_size;
  const int32_t *block_tables, *query_starts, *context_lens;
  int64_t table_stride, num_sequences;
  float scaling;
  float softcap;           // 0 = none
  int64_t window, chunk;   // 0 = none
  const float *sinks;      // [heads] or NULL
  const float *slopes;     // alibi, [heads] or NULL: added times (key position - query position)
} attention;

// A run of queries of one sequence that are attended together, for each key/value head.
typedef struct {
  int32_t sequence, first_query, num_queries;
} attention_item;

static int64_t queries_per_item(int64_t heads, int64_t kv_heads) {
  const int64_t group = heads / kv_heads;
  return group >= TARGET_ROWS ? 1 : TARGET_ROWS / group;
}

// Give the number of items; `items` has room for tokens + sequences of them. Later queries cost more and come first.
static int64_t list_items(const int32_t *query_starts, int64_t num_sequences, int64_t queries, attention_item *items) {
  int64_t count = 0;
  for (int64_t s = 0; s < num_sequences; s++) {
    const int64_t length = query_starts[s + 1] - query_starts[s];
    const int64_t runs = (length + queries - 1) / queries;
    for (int64_t run = runs - 1; run >= 0; run--) {
      const int64_t first = run * queries;
      const int64_t left = length - first;
      items[count++] = (attention_item){(int32_t)s, (int32_t)first, (int32_t)(left < queries ? left : queries)};
    }
  }
  return count;
}

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Bytes of scratch that one thread needs for `attend_heads`.
static int64_t attention_scratch_bytes(int64_t heads, int64_t kv_heads, int64_t key_dim, int64_t value_dim) {
  const int64_t group = heads / kv_heads;
  const int64_t rows = group >= TARGET_ROWS ? group : TARGET_ROWS;
  const int64_t key_words = round_up(key_dim, 32), value_columns = round_up(value_dim, 32);
  return 4 * (rows * (key_words + TILE_PLACES * 2 + value_columns + 2) + TILE_PLACES * (key_words + value_columns)) + 64 * 8;
}

INLINE int64_t first_seen(const attention *a, int64_t position) {
  int64_t first = 0;
  if (a->window && position - a->window + 1 > first) first = position - a->window + 1;
  if (a->chunk && position / a->chunk * a->chunk > first) first = position / a->chunk * a->chunk;
  return first;
}

// Where the places of a tile stand in the pools, counted in tokens. -1: before `first` or from `end` on; what stands
// there is another's and may be NaN.
static void find_places(const attention *a, const int32_t *table, int64_t start, int64_t first, int64_t end,
                        int64_t offsets[TILE_PLACES]) {
  int64_t block = start / a->block_size, offset = start % a->block_size;
  for (int64_t i = 0; i < TILE_PLACES; i++) {
    offsets[i] = start + i >= first && start + i < end ? (int64_t)table[block] * a->block_size + offset : -1;
    if (++offset == a->block_size) {
      offset = 0;
      block++;
    }
  }
}

// Into the second-level cache: blocks lie apart, and the processor does not foresee which one comes next.
INLINE void fetch_row(const void *row, int64_t num_bytes) {
  for (int64_t byte = 0; byte < num_bytes; byte += 64) __builtin_prefetch((const char *)row + byte, 0, 2);
}

// 16 rows of 16 words become 16 columns, written `stride` words apart.
INLINE void transpose_words(const uint32_t *const rows[16], int64_t at, int64_t width, uint32_t *to, int64_t stride) {
#if defined(__AVX512F__)
  const __mmask16 mask = width >= 16 ? 0xffff : (__mmask16)((1 << width) - 1);
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = rows[i] ? _mm512_maskz_loadu_epi32(mask, rows[i] + at) : _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {  // r[4 q + i] holds columns i, 4 + i, 8 + i, 12 + i of rows 4 q .. 4 q + 3
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    store_u(to + i * stride, (v16u)_mm512_shuffle_i32x4(a, b, 0x88));
    store_u(to + (8 + i) * stride, (v16u)_mm512_shuffle_i32x4(a, b, 0xdd));
    store_u(to + (4 + i) * stride, (v16u)_mm512_shuffle_i32x4(c, d, 0x88));
    store_u(to + (12 + i) * stride, (v16u)_mm512_shuffle_i32x4(c, d, 0xdd));
  }
#else
  for (int column = 0; column < 16; column++)
    for (int i = 0; i < 16; i++) to[column * stride + i] = rows[i] && column < width ? rows[i][at + column] : 0;
#endif
}
