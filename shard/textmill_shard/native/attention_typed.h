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

// One row of scores, 32 of each panel, becomes weights; gives the factor by which the row's earlier output shrinks.
// `is_plain`: 64 places, all of them seen, no softcap; known where this is inlined.
INLINE float NAME(soften)(const attention *a, const float *const scores[2], element *weights, int64_t num_places, int64_t low,
                          int64_t high, const int is_plain, float *peak, float *totals) {
  const v16i step = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int count = is_plain ? TILE_PLACES / 16 : (int)(num_places / 16);
  const v16f scaling = splat(a->scaling);
  v16f x[TILE_PLACES / 16], top = splat(NO_SCORE);
#pragma GCC unroll 4
  for (int i = 0; i < TILE_PLACES / 16; i++) {
    if (i >= count) break;
    x[i] = load_f(scores[i / 2] + i % 2 * 16) * scaling;
    if (!is_plain) {
      const v16i place = step + 16 * i;
      if (a->softcap != 0.0f) x[i] = splat(a->softcap) * tanh_v(x[i] * splat(1.0f / a->softcap));
      x[i] = pick((place >= (int32_t)(low > 0 ? low : 0)) & (place <= (int32_t)high), x[i], splat(-INFINITY));
    }
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
  store_f(totals, load_f(totals) * splat(shrink) + sum);
  *peak = now;
  return shrink;
}

// Rows `row` .. `row + tile` of head `h` of the task over one tile of places. Panels of keys and values (16 KB of
// bfloat16 heads of 64), scores, weights and sums stay in the first-level cache meanwhile.
static void NAME(attend_rows)(const attention *a, const attention_task *t, const attention_memory *memory, int64_t h,
                              int64_t row, int64_t tile, int64_t start, int64_t num_places) {
  const int64_t group = a->heads / a->kv_heads, first_row = h * t->item.num_queries * group + row;
  const int64_t key_words = round_up(a->key_dim / PER_WORD, 16), columns = round_up(a->value_dim, LANES);
  const int64_t key_panels = num_places / LANES, value_panels = columns / LANES;
  const gemm score = {.rows = memory->query, .row_words = key_words, .panels = memory->key_panels, .inner_words = key_words};
  NAME(sum_panels)(&score, first_row, tile, key_panels, 0, memory->scores);
  float *out = memory->out + first_row * columns;
  for (int64_t i = 0; i < tile; i++) {
    const float *const scores[2] = {memory->scores + sum_place(tile, key_panels, i, 0),
                                    memory->scores + sum_place(tile, key_panels, i, key_panels - 1)};
    const int64_t position = t->first_position + (row + i) / group;
    int64_t high = position - start;
    if (a->span_ends) high = end_seen(a, t->query_row + (row + i) / group, position, t->end) - 1 - start;
    const int64_t low = first_seen(a, position) - start;
    element *weights = (element *)memory->weights + i * TILE_PLACES;
    float *peak = memory->peaks + first_row + i, *totals = memory->totals + (first_row + i) * 16;
    float shrink;
    if (low <= 0 && high >= TILE_PLACES - 1 && a->softcap == 0.0f)
      shrink = NAME(soften)(a, scores, weights, TILE_PLACES, low, high, 1, peak, totals);
    else
      shrink = NAME(soften)(a, scores, weights, num_places, low, high, 0, peak, totals);
    if (shrink != 1.0f)
      for (int64_t panel = 0; panel < value_panels; panel++) {
        float *sums = out + sum_place(tile, value_panels, i, panel);
        store_f(sums, load_f(sums) * splat(shrink));
        store_f(sums + 16, load_f(sums + 16) * splat(shrink));
      }
  }
  const gemm mix = {.rows = memory->weights, .row_words = TILE_PLACES / PER_WORD, .panels = memory->value_panels,
                    .inner_words = num_places / PER_WORD};
  NAME(sum_panels)(&mix, 0, tile, value_panels, 1, out);
}

static void NAME(begin_rows)(const attention *a, const attention_task *t, const attention_memory *memory, int64_t num_rows) {
  const int64_t group = a->heads / a->kv_heads, head_rows = t->item.num_queries * group;
  const int64_t words = a->key_dim / PER_WORD, key_words = round_up(words, 16);
  for (int64_t row = 0; row < num_rows; row++) {
    const int64_t token = t->query_row + row % head_rows / group;
    const int64_t head = (t->kv_head + row / head_rows) * group + row % group;
    const element *from = (const element *)a->query + token * a->query_token_stride + head * a->query_head_stride;
    memcpy(memory->query + row * key_words, from, (size_t)a->key_dim * sizeof(element));
    memset(memory->query + row * key_words + words, 0, (size_t)(key_words - words) * 4);
    memory->peaks[row] = a->sinks ? a->sinks[head] : NO_SCORE;
    store_f(memory->totals + row * 16, splat(0.0f));
    if (a->sinks) memory->totals[row * 16] = 1.0f;
  }
  memset(memory->out, 0, (size_t)(num_rows * round_up(a->value_dim, LANES)) * sizeof(float));
}

// Rows `row` .. `row + tile` of head `h`: divided by their totals, to where they are wanted.
static void NAME(end_rows)(const attention *a, const attention_task *t, const attention_memory *memory, int64_t h, int64_t row,
                           int64_t tile) {
  const int64_t group = a->heads / a->kv_heads, first_row = h * t->item.num_queries * group + row;
  const int64_t columns = round_up(a->value_dim, LANES), panels = columns / LANES;
  for (int64_t i = 0; i < tile; i++) {
    const int64_t token = t->query_row + (row + i) / group, head = (t->kv_head + h) * group + (row + i) % group;
    element *to = (element *)a->out + token * a->out_token_stride + head * a->out_head_stride;
    const v16f factor = splat(1.0f / sum_lanes(load_f(memory->totals + (first_row + i) * 16)));
    for (int64_t column = 0; column < a->value_dim; column += 16) {
      const float *sums = memory->out + first_row * columns + sum_place(tile, panels, i, column / LANES) + column % LANES;
      const int64_t width = a->value_dim - column < 16 ? a->value_dim - column : 16;
      element part[16];
      narrow(part, load_f(sums) * factor);
      memcpy(to + column, part, (size_t)width * sizeof(element));
    }
  }
}

// While a tile is computed, the next one is fetched; after the last, the first one of the thread's next task (or NULL).
static void NAME(attend_task)(const attention *a, const attention_task *t, const attention_task *upcoming,
                              const attention_memory *memory, place_tile *now) {
  const int64_t head_rows = t->item.num_queries * (a->heads / a->kv_heads);
  const int64_t num_tiles = (head_rows + MAX_TILE - 1) / MAX_TILE;
  const int64_t words = a->key_dim / PER_WORD, key_words = round_up(words, 16);
  NAME(begin_rows)(a, t, memory, head_rows * t->num_kv_heads);
  for (int has_more = 1; has_more;) {
    place_tile next;
    has_more = now->start + TILE_PLACES < t->end;
    const int has_next = has_more || upcoming;
    if (has_more)
      next = find_places(a, t, now->start + TILE_PLACES, sizeof(element));
    else if (upcoming)
      next = find_places(a, upcoming, upcoming->first_place / TILE_PLACES * TILE_PLACES, sizeof(element));
    int64_t part = 0;
    const int64_t parts = 4 * t->num_kv_heads;  // of the next tile, fetched a part at a time
    const int64_t left = t->end - now->start, num_places = round_up(left < TILE_PLACES ? left : TILE_PLACES, LANES);
    for (int64_t h = 0; h < t->num_kv_heads; h++) {
      const element *key_rows[TILE_PLACES], *value_rows[TILE_PLACES];
      for (int64_t i = 0; i < num_places; i++) {
        const int64_t offset = now->offsets[i];
        key_rows[i] = offset < 0 ? NULL : (const element *)(now->keys + offset * now->key_stride) + h * a->key_dim;
        value_rows[i] = offset < 0 ? NULL : (const element *)(now->values + offset * now->value_stride) + h * a->value_dim;
      }
      if (has_next) fetch_places(&next, part++, parts);
      NAME(pack_keys)((const uint32_t *const *)key_rows, num_places, words, key_words, memory->key_panels);
      if (has_next) fetch_places(&next, part++, parts);
      NAME(pack_values)(value_rows, num_places, a->value_dim, memory->value_panels);
      for (int64_t tile = 0; tile < num_tiles; tile++) {
        const int64_t row = share(head_rows, tile, num_tiles), end = share(head_rows, tile + 1, num_tiles);
        if (has_next && !tile) fetch_places(&next, part++, parts);
        NAME(attend_rows)(a, t, memory, h, row, end - row, now->start, num_places);
        if (has_next && !tile) fetch_places(&next, part++, parts);
        if (!has_more) NAME(end_rows)(a, t, memory, h, row, end - row);
      }
    }
    if (has_next) *now = next;
  }
}

// Takes items from the common counter until there are none.
static void NAME(attend_items)(const attention *a, const attention_item *items, int64_t num_items, int64_t team_size,
                               atomic_long *next, void *scratch) {
  attention_queue queue = open_queue(a, items, num_items, team_size, next);
  attention_memory memory;
  attention_scratch_bytes(a->heads, a->kv_heads, a->key_dim, a->value_dim, scratch, &memory);
  attention_task task, upcoming;
  if (!take_task(&queue, &task)) return;
  place_tile tile = find_places(a, &task, task.first_place / TILE_PLACES * TILE_PLACES, sizeof(element));
  fetch_places(&tile, 0, 1);
  for (int has_task = 1; has_task; task = upcoming) {
    has_task = take_task(&queue, &upcoming);
    NAME(attend_task)(a, &task, has_task ? &upcoming : NULL, &memory, &tile);
  }
}
