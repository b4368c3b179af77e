// Included once per element type, after element.h.

// Keys of a tile as panels for the product with the queries: [2 panels][key words][32 places].
static void NAME(pack_keys)(const uint32_t *const rows[TILE_PLACES], int64_t num_places, int64_t words,
                            int64_t padded_words, uint32_t *to) {
  for (int64_t place = 0; place < num_places; place += 16)
    for (int64_t at = 0; at < padded_words; at += 16) {
      uint32_t *panel = to + (place / LANES) * padded_words * LANES + at * LANES + place % LANES;
      transpose_words(rows + place, at, words - at, panel, LANES);
    }
}

// The next place (two of bfloat16) of up to 32 dims as 32 words; rows may be NULL.
INLINE void NAME(pack_value_words)(const element *const *rows, int64_t column, int64_t width, uint32_t *to) {
#if BFLOAT16 && defined(__AVX512BW__)
  static const uint16_t low[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                   8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __mmask32 mask = width >= 32 ? 0xffffffffu : (1u << width) - 1;
  const __m512i even = rows[0] ? _mm512_maskz_loadu_epi16(mask, rows[0] + column) : _mm512_setzero_si512();
  const __m512i odd = rows[1] ? _mm512_maskz_loadu_epi16(mask, rows[1] + column) : _mm512_setzero_si512();
  const __m512i first = _mm512_loadu_si512(low), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  store_u(to, (v16u)_mm512_permutex2var_epi16(even, first, odd));
  store_u(to + 16, (v16u)_mm512_permutex2var_epi16(even, second, odd));
#else
  element *lanes = (element *)to;  // bfloat16: low half, high half; a word otherwise
  for (int64_t lane = 0; lane < LANES; lane++)
    for (int i = 0; i < PER_WORD; i++) {
      element *half = lanes + lane * PER_WORD + i;
      if (rows[i] && lane < width)
        *half = rows[i][column + lane];
      else
        *half = 0;
    }
#endif
}

// Values of a tile as panels for the product with the weights: [dims / 32][place words][32 dims].
static void NAME(pack_values)(const element *const rows[TILE_PLACES], int64_t num_places, int64_t dim, uint32_t *to) {
  const int64_t words = num_places / PER_WORD;
  for (int64_t k = 0; k < words; k++)
    for (int64_t column = 0; column < dim; column += LANES) {
      const int64_t width = dim - column < LANES ? dim - column : LANES;
      NAME(pack_value_words)(rows + k * PER_WORD, column, width, to + column * words + k * LANES);
    }
}

// One row of scores becomes weights; gives the factor by which the row's earlier output shrinks.
INLINE float NAME(soften)(const attention *a, float *scores, element *weights, int64_t num_places, int64_t tile_start,
                          int64_t position, int64_t head, float *peak, float *total) {
  const v16i step = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t low = first_seen(a, position) - tile_start, high = position - tile_start;
  const int whole = low <= 0 && high >= num_places - 1;
  const v16f scaling = splat(a->scaling);
  v16f x[TILE_PLACES / 16], top = splat(NO_SCORE);
  const int count = (int)(num_places / 16);
#pragma GCC unroll 4
  for (int i = 0; i < TILE_PLACES / 16; i++) {
    if (i >= count) break;
    x[i] = load_f(scores + 16 * i) * scaling;
    const v16i place = step + 16 * i;
    if (a->softcap != 0.0f) x[i] = splat(a->softcap) * tanh_v(x[i] * splat(1.0f / a->softcap));
    if (a->slopes) x[i] += splat(a->slopes[head]) * __builtin_convertvector(place - (int32_t)high, v16f);
    if (!whole) x[i] = pick((place >= (int32_t)(low > 0 ? low : 0)) & (place <= (int32_t)high), x[i], splat(-INFINITY));
    top = larger(x[i], top);
  }
  const float highest = max_lanes(top);
  const float now = highest > *peak ? highest : *peak;
  const float shrink = *peak == now ? 1.0f : expf(*peak - now);
  v16f sum = splat(0.0f);
#pragma GCC unroll 4
  for (int i = 0; i < TILE_PLACES / 16; i++) {
    if (i >= count) break;
    const v16f weight = exp_v(x[i] - splat(now));
    narrow(weights + 16 * i, weight);
    sum += weight;
  }
  *total = *total * shrink + sum_lanes(sum);
  *peak = now;
  return shrink;
}

// `num_kv_heads` heads of one item, side by side, so that the rows of a tile are read as they lie.
static void NAME(attend_heads)(const attention *a, attention_item item, int64_t kv_head, int64_t num_kv_heads, void *scratch) {
  const int64_t group = a->heads / a->kv_heads, head_rows = item.num_queries * group, num_rows = head_rows * num_kv_heads;
  const int64_t words = a->key_dim / PER_WORD, padded_words = round_up(words, 16);
  const int64_t columns = round_up(a->value_dim, LANES);
  const int64_t context = a->context_lens[item.sequence];
  const int64_t query_row = a->query_starts[item.sequence] + item.first_query;
  const int64_t length = a->query_starts[item.sequence + 1] - a->query_starts[item.sequence];
  const int64_t first_position = context - length + item.first_query;
  const int64_t first_place = first_seen(a, first_position), end = first_position + item.num_queries;
  const int32_t *table = a->block_tables + item.sequence * a->table_stride;
  const element *keys = (const element *)a->keys + kv_head * a->key_dim;
  const element *values = (const element *)a->values + kv_head * a->value_dim;
  const int64_t key_stride = a->kv_heads * a->key_dim, value_stride = a->kv_heads * a->value_dim;
  const int64_t key_bytes = num_kv_heads * a->key_dim * (int64_t)sizeof(element);
  const int64_t value_bytes = num_kv_heads * a->value_dim * (int64_t)sizeof(element);

  int64_t offsets[TILE_PLACES], next_offsets[TILE_PLACES];
  const int64_t first_tile = first_place / TILE_PLACES * TILE_PLACES;
  find_places(a, table, first_tile, first_place, end, next_offsets);
  for (int i = 0; i < TILE_PLACES; i++) {
    if (next_offsets[i] < 0) continue;
    fetch_row(keys + next_offsets[i] * key_stride, key_bytes);
    fetch_row(values + next_offsets[i] * value_stride, value_bytes);
  }

  uint32_t *query = scratch;  // rows of the first head, then of the next
  uint32_t *key_panels = query + round_up(num_rows * padded_words, 16);
  uint32_t *value_panels = key_panels + TILE_PLACES * padded_words;
  float *scores = (float *)(value_panels + TILE_PLACES * columns);
  element *weights = (element *)(scores + head_rows * TILE_PLACES);
  float *out = (float *)(weights + head_rows * TILE_PLACES);
  float *peak = out + num_rows * columns, *total = peak + num_rows;

  for (int64_t row = 0; row < num_rows; row++) {
    const int64_t token = query_row + row % head_rows / group;
    const int64_t head = (kv_head + row / head_rows) * group + row % group;
    const element *from = (const element *)a->query + token * a->query_token_stride + head * a->query_head_stride;
    memcpy(query + row * padded_words, from, (size_t)a->key_dim * sizeof(element));
    memset(query + row * padded_words + words, 0, (size_t)(padded_words - words) * 4);
    peak[row] = a->sinks ? a->sinks[head] : NO_SCORE;
    total[row] = a->sinks ? 1.0f : 0.0f;
  }
  memset(out, 0, (size_t)(num_rows * columns) * sizeof(float));

  for (int64_t start = first_tile; start < end; start += TILE_PLACES) {
    const int64_t stop = end - start < TILE_PLACES ? end - start : TILE_PLACES;
    const int64_t num_places = round_up(stop, LANES);
    const int has_next = start + TILE_PLACES < end;
    memcpy(offsets, next_offsets, sizeof offsets);
    if (has_next) find_places(a, table, start + TILE_PLACES, first_place, end, next_offsets);
    for (int64_t h = 0; h < num_kv_heads; h++) {
      const element *key_rows[TILE_PLACES], *value_rows[TILE_PLACES];
      for (int64_t i = 0; i < num_places; i++) {
        key_rows[i] = offsets[i] < 0 ? NULL : keys + offsets[i] * key_stride + h * a->key_dim;
        value_rows[i] = offsets[i] < 0 ? NULL : values + offsets[i] * value_stride + h * a->value_dim;
      }
      if (has_next)  // a part of the next tile with each head
        for (int64_t i = share(TILE_PLACES, h, num_kv_heads); i < share(TILE_PLACES, h + 1, num_kv_heads); i++) {
          if (next_offsets[i] < 0) continue;
          fetch_row(keys + next_offsets[i] * key_stride, key_bytes);
          fetch_row(values + next_offsets[i] * value_stride, value_bytes);
        }
      NAME(pack_keys)((const uint32_t *const *)key_rows, num_places, words, padded_words, key_panels);
      const gemm score = {.rows = query + h * head_rows * padded_words, .row_words = padded_words, .panels = key_panels,
                          .inner_words = padded_words, .num_rows = head_rows, .num_outputs = num_places, .out = scores,
                          .out_stride = TILE_PLACES, .end = STORE};
      NAME(run_gemm)(&score, 0, num_places / LANES);
      float *head_out = out + h * head_rows * columns;
      for (int64_t row = 0; row < head_rows; row++) {
        const float shrink = NAME(soften)(a, scores + row * TILE_PLACES, weights + row * TILE_PLACES, num_places, start,
                                          first_position + row / group, (kv_head + h) * group + row % group,
                                          peak + h * head_rows + row, total + h * head_rows + row);
        if (shrink != 1.0f)
          for (int64_t i = 0; i < columns; i += 16)
            store_f(head_out + row * columns + i, load_f(head_out + row * columns + i) * splat(shrink));
      }
      NAME(pack_values)(value_rows, num_places, a->value_dim, value_panels);
      const gemm mix = {.rows = (const uint32_t *)weights, .row_words = TILE_PLACES / PER_WORD, .panels = value_panels,
                        .inner_words = num_places / PER_WORD, .num_rows = head_rows, .num_outputs = columns,
                        .out = head_out, .out_stride = columns, .end = ADD};
      NAME(run_gemm)(&mix, 0, columns / LANES);
    }
  }

  for (int64_t row = 0; row < num_rows; row++) {
    const int64_t token = query_row + row % head_rows / group;
    const int64_t head = (kv_head + row / head_rows) * group + row % group;
    element *to = (element *)a->out + token * a->out_token_stride + head * a->out_head_stride;
    const v16f factor = splat(1.0f / total[row]);
    for (int64_t i = 0; i < a->value_dim; i += 16) {
      element part[16];
      narrow(part, load_f(out + row * columns + i) * factor);
      const int64_t width = a->value_dim - i < 16 ? a->value_dim - i : 16;
      memcpy(to + i, part, (size_t)width * sizeof(element));
    }
  }
}

// Takes items from the common counter until there are none.
static void NAME(attend_items)(const attention *a, const attention_item *items, int64_t num_items, int64_t team_size,
                               atomic_long *next, void *scratch) {
  // With few items their heads are shared out; with many, one thread takes all heads of an item.
  const int64_t at_once = num_items >= 2 * team_size ? a->kv_heads : (a->kv_heads + team_size - 1) / team_size;
  const int64_t parts = (a->kv_heads + at_once - 1) / at_once;
  for (;;) {
    const int64_t taken = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
    if (taken >= num_items * parts) return;
    const attention_item item = items[taken / parts];
    const int64_t first = taken % parts * at_once, end = first + at_once < a->kv_heads ? first + at_once : a->kv_heads;
    const int64_t fitting = TARGET_ROWS / (item.num_queries * (a->heads / a->kv_heads));
    const int64_t step = fitting > 1 ? fitting : 1;
    for (int64_t head = first; head < end; head += step)
      NAME(attend_heads)(a, item, head, end - head < step ? end - head : step, scratch);
  }
}
