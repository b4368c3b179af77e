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
  const int32_t *span_ends;  // [tokens]: a query sees all places before its entry, 0 = none; NULL: no query has one
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

INLINE int64_t first_seen(const attention *a, int64_t position) {
  int64_t first = 0;
  if (a->window && position - a->window + 1 > first) first = position - a->window + 1;
  if (a->chunk && position / a->chunk * a->chunk > first) first = position / a->chunk * a->chunk;
  return first;
}

// One more than the last place that the query of a batch row sees, which stands at `position` of its sequence.
INLINE int64_t end_seen(const attention *a, int64_t query_row, int64_t position, int64_t context_len) {
  int64_t end = position + 1;
  if (a->span_ends && a->span_ends[query_row] > end) end = a->span_ends[query_row];
  return end < context_len ? end : context_len;  // what stands behind the context is another's
}

// An item for some of its key/value heads, side by side, so that the rows of a tile are read as they lie.
typedef struct {
  attention_item item;
  int64_t kv_head, num_kv_heads;
  int64_t query_row, first_position;  // of the first query: in the batch, in its sequence
  int64_t first_place, end;           // what its queries see
} attention_task;

// Where the rows of keys and values of a tile of places stand, in tokens. -1: before `first_place` or from `end` on; what
// stands there is another's and may be NaN.
typedef struct {
  const char *keys, *values;  // of the task's first head
  int64_t key_stride, value_stride, key_bytes, value_bytes;
  int64_t start, offsets[TILE_PLACES];
} place_tile;

static place_tile find_places(const attention *a, const attention_task *t, int64_t start, int64_t element_bytes) {
  place_tile tile = {
      .keys = (const char *)a->keys + t->kv_head * a->key_dim * element_bytes,
      .values = (const char *)a->values + t->kv_head * a->value_dim * element_bytes,
      .key_stride = a->kv_heads * a->key_dim * element_bytes, .value_stride = a->kv_heads * a->value_dim * element_bytes,
      .key_bytes = t->num_kv_heads * a->key_dim * element_bytes, .value_bytes = t->num_kv_heads * a->value_dim * element_bytes,
      .start = start};
  const int32_t *table = a->block_tables + t->item.sequence * a->table_stride;
  int64_t block = start / a->block_size, offset = start % a->block_size;
  for (int64_t i = 0; i < TILE_PLACES; i++) {
    const int is_seen = start + i >= t->first_place && start + i < t->end;
    tile.offsets[i] = is_seen ? (int64_t)table[block] * a->block_size + offset : -1;
    if (++offset == a->block_size) {
      offset = 0;
      block++;
    }
  }
  return tile;
}

// Into the second-level cache: blocks lie apart, and the processor does not foresee which one comes next. `part` of
// `parts` of the rows: all at once they would keep the processor from computing meanwhile. Inline, since compilers leave
// out calls of a function that only prefetches.
INLINE void fetch_places(const place_tile *tile, int64_t part, int64_t parts) {
  for (int64_t i = share(TILE_PLACES, part, parts); i < share(TILE_PLACES, part + 1, parts); i++) {
    if (tile->offsets[i] < 0) continue;
    const char *key = tile->keys + tile->offsets[i] * tile->key_stride;
    const char *value = tile->values + tile->offsets[i] * tile->value_stride;
    for (int64_t byte = 0; byte < tile->key_bytes; byte += 64) __builtin_prefetch(key + byte, 0, 2);
    for (int64_t byte = 0; byte < tile->value_bytes; byte += 64) __builtin_prefetch(value + byte, 0, 2);
  }
}

// The tasks of one thread; the threads take items from a common counter.
typedef struct {
  const attention *attention;
  const attention_item *items;
  int64_t num_items, heads_at_once, parts;
  atomic_long *next;
  attention_item item;
  int64_t head, end_head;
} attention_queue;

static attention_queue open_queue(const attention *a, const attention_item *items, int64_t num_items, int64_t team_size, atomic_long *next) {
  // With few items their heads are shared out; with many, one thread takes all heads of an item.
  const int64_t at_once = num_items >= 2 * team_size ? a->kv_heads : (a->kv_heads + team_size - 1) / team_size;
  return (attention_queue){.attention = a, .items = items, .num_items = num_items, .heads_at_once = at_once,
                           .parts = (a->kv_heads + at_once - 1) / at_once, .next = next};
}

static int take_task(attention_queue *q, attention_task *task) {
  const attention *a = q->attention;
  if (q->head == q->end_head) {
    const int64_t taken = atomic_fetch_add_explicit(q->next, 1, memory_order_relaxed);
    if (taken >= q->num_items * q->parts) return 0;
    q->item = q->items[taken / q->parts];
    q->head = taken % q->parts * q->heads_at_once;
    q->end_head = q->head + q->heads_at_once < a->kv_heads ? q->head + q->heads_at_once : a->kv_heads;
  }
  const int64_t fitting = TARGET_ROWS / (q->item.num_queries * (a->heads / a->kv_heads)), left = q->end_head - q->head;
  const int64_t heads = fitting < 1 ? 1 : fitting < left ? fitting : left;
  const int64_t begin = a->query_starts[q->item.sequence], length = a->query_starts[q->item.sequence + 1] - begin;
  const int64_t position = a->context_lens[q->item.sequence] - length + q->item.first_query;
  int64_t end = position + q->item.num_queries;
  const int64_t context_len = a->context_lens[q->item.sequence];
  for (int64_t i = 0; a->span_ends && i < q->item.num_queries; i++) {
    const int64_t seen = end_seen(a, begin + q->item.first_query + i, position + i, context_len);
    if (seen > end) end = seen;
  }
  *task = (attention_task){q->item, q->head, heads, begin + q->item.first_query, position, first_seen(a, position), end};
  q->head += heads;
  return 1;
}

// Working memory of one thread. Rows are queries times heads of their group, for one key/value head after the other.
typedef struct {
  uint32_t *query;       // [rows][padded key words]
  uint32_t *key_panels;  // [2 panels][padded key words][32 places]
  uint32_t *value_panels;
  float *scores;         // of one tile of rows, as `sum_panels` leaves them
  void *weights;         // [MAX_TILE][TILE_PLACES] elements
  float *out;            // tile of rows by tile of rows, each as `sum_panels` leaves it
  float *totals;         // [rows][16], added up at the end
  float *peaks;          // [rows]
} attention_memory;

// Bytes that `attend_items` needs; with `scratch` it also says what stands where.
static int64_t attention_scratch_bytes(int64_t heads, int64_t kv_heads, int64_t key_dim, int64_t value_dim, void *scratch,
                                       attention_memory *memory) {
  const int64_t group = heads / kv_heads, rows = group >= TARGET_ROWS ? group : TARGET_ROWS;
  const int64_t key_words = round_up(key_dim, 32), columns = round_up(value_dim, 32);
  const int64_t words[] = {rows * key_words, TILE_PLACES * key_words, TILE_PLACES * columns, MAX_TILE * TILE_PLACES,
                           MAX_TILE * TILE_PLACES, rows * columns, rows * 16, round_up(rows, 16)};
  char *at[8];
  int64_t total = 0;
  for (int i = 0; i < 8; i++) {
    at[i] = (char *)scratch + total;
    total += 4 * words[i];
  }
  if (memory)
    *memory = (attention_memory){(uint32_t *)at[0], (uint32_t *)at[1], (uint32_t *)at[2], (float *)at[3], at[4],
                                 (float *)at[5], (float *)at[6], (float *)at[7]};
  return total;
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
