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

// Values of a tile as panels for the product with the weights: [dims / 32][place words][32 dims].
static void NAME(pack_values)(const element *const rows[TILE_PLACES], int64_t num_places, int64_t dim, uint32_t *to) {
  static const element nothing[16];
  element cut[PER_WORD][16];
  const int64_t words = num_places / PER_WORD;
  for (int64_t column = 0; column < round_up(dim, LANES); column += 16) {
    uint32_t *half = to + (column / LANES) * words * LANES + column % LANES;
    for (int64_t k = 0; k < words; k++) {
      const element *from[PER_WORD];
      for (int i = 0; i < PER_WORD; i++) {
        const element *row = rows[k * PER_WORD + i];
        from[i] = row && column < dim ? row + column : nothing;
        if (column < dim && column + 16 > dim) {
          memset(cut[i], 0, sizeof cut[i]);
          if (row) memcpy(cut[i], row + column, (size_t)(dim - column) * sizeof(element));
          from[i] = cut[i];
        }
      }
#if BFLOAT16
      const v16u even = __builtin_convertvector((v16h) * (const v16h_any *)from[0], v16u);
      const v16u odd = __builtin_convertvector((v16h) * (const v16h_any *)from[1], v16u);
      store_u(half + k * LANES, even | odd << 16);
#else
      store_u(half + k * LANES, (v16u)load_f(from[0]));
#endif
    }
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

static void NAME(attend_item)(const attention *a, attention_item item, int64_t kv_head, void *scratch) {
  const int64_t group = a->heads / a->kv_heads, num_rows = item.num_queries * group;
  const int64_t words = a->key_dim / PER_WORD, padded_words = round_up(words, 16);
  const int64_t columns = round_up(a->value_dim, LANES);
  const int64_t context = a->context_lens[item.sequence];
  const int64_t query_row = a->query_starts[item.sequence] + item.first_query;
  const int64_t length = a->query_starts[item.sequence + 1] - a->query_starts[item.sequence];
  const int64_t first_position = context - length + item.first_query;
  const int64_t last_position = first_position + item.num_queries - 1;
  const int32_t *table = a->block_tables + item.sequence * a->table_stride;

  uint32_t *query = scratch;  // all parts are multiples of 64 bytes but the last
  uint32_t *key_panels = query + round_up(num_rows * padded_words, 16);
  uint32_t *value_panels = key_panels + TILE_PLACES * padded_words;
  float *scores = (float *)(value_panels + TILE_PLACES * columns);
  element *weights = (element *)(scores + num_rows * TILE_PLACES);
  float *out = (float *)(weights + num_rows * TILE_PLACES);
  float *peak = out + num_rows * columns, *total = peak + num_rows;

  for (int64_t row = 0; row < num_rows; row++) {
    const int64_t head = kv_head * group + row % group;
    const element *from = (const element *)a->query + (query_row + row / group) * a->query_token_stride + head * a->query_head_stride;
    memcpy(query + row * padded_words, from, (size_t)a->key_dim * sizeof(element));
    memset(query + row * padded_words + words, 0, (size_t)(padded_words - words) * 4);
    peak[row] = a->sinks ? a->sinks[head] : NO_SCORE;
    total[row] = a->sinks ? 1.0f : 0.0f;
  }
  memset(out, 0, (size_t)(num_rows * columns) * sizeof(float));

  const int64_t first_place = first_seen(a, first_position);
  for (int64_t start = first_place / TILE_PLACES * TILE_PLACES; start <= last_position; start += TILE_PLACES) {
    const int64_t stop = last_position + 1 - start < TILE_PLACES ? last_position + 1 - start : TILE_PLACES;
    const int64_t num_places = round_up(stop, LANES);
    const element *key_rows[TILE_PLACES], *value_rows[TILE_PLACES];
    for (int64_t i = 0; i < num_places; i++) {
      const int64_t position = start + i;
      if (i >= stop || position < first_place) {
        key_rows[i] = value_rows[i] = NULL;  // what stands there is another's, and may be NaN
        continue;
      }
      const int64_t place = (int64_t)table[position / a->block_size] * a->block_size + position % a->block_size;
      key_rows[i] = (const element *)a->keys + (place * a->kv_heads + kv_head) * a->key_dim;
      value_rows[i] = (const element *)a->values + (place * a->kv_heads + kv_head) * a->value_dim;
    }
    NAME(pack_keys)((const uint32_t *const *)key_rows, num_places, words, padded_words, key_panels);
    const gemm score = {.rows = query, .row_words = padded_words, .panels = key_panels, .inner_words = padded_words,
                        .num_rows = num_rows, .num_outputs = num_places, .out = scores, .out_stride = TILE_PLACES, .end = STORE};
    NAME(run_gemm)(&score, 0, num_places / LANES);
    for (int64_t row = 0; row < num_rows; row++) {
      const float shrink = NAME(soften)(a, scores + row * TILE_PLACES, weights + row * TILE_PLACES, num_places, start,
                                        first_position + row / group, kv_head * group + row % group, peak + row, total + row);
      if (shrink != 1.0f)
        for (int64_t i = 0; i < columns; i += 16)
          store_f(out + row * columns + i, load_f(out + row * columns + i) * splat(shrink));
    }
    NAME(pack_values)(value_rows, num_places, a->value_dim, value_panels);
    const gemm mix = {.rows = (const uint32_t *)weights, .row_words = TILE_PLACES / PER_WORD, .panels = value_panels,
                      .inner_words = num_places / PER_WORD, .num_rows = num_rows, .num_outputs = columns, .out = out,
                      .out_stride = columns, .end = ADD};
    NAME(run_gemm)(&mix, 0, columns / LANES);
  }

  for (int64_t row = 0; row < num_rows; row++) {
    element *to = (element *)a->out + (query_row + row / group) * a->out_token_stride + (kv_head * group + row % group) * a->out_head_stride;
    const v16f factor = splat(1.0f / total[row]);
    for (int64_t i = 0; i < a->value_dim; i += 16) {
      element part[16];
      narrow(part, load_f(out + row * columns + i) * factor);
      const int64_t width = a->value_dim - i < 16 ? a->value_dim - i : 16;
      memcpy(to + i, part, (size_t)width * sizeof(element));
    }
  }
}
