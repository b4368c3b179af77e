// Included once per element type, after element.h and before gemm_typed.h.

// z of `count` rows and 8 ranks: lanes run over the inner axis and are added up at the end.
INLINE void NAME(shrink_rows)(const element *const *x, const element *a, int64_t inner, const float *scales, element *const *z, const int count) {
  v16f sums[ROWS_AT_ONCE][RANKS_AT_ONCE];
#pragma GCC unroll 3
  for (int i = 0; i < count; i++)
#pragma GCC unroll 8
    for (int k = 0; k < RANKS_AT_ONCE; k++) sums[i][k] = splat(0.0f);
  const int64_t whole = inner / CHUNK * CHUNK;
  for (int64_t from = 0; from < whole; from += CHUNK, a += RANKS_AT_ONCE * CHUNK)
#pragma GCC unroll 2
    for (int part = 0; part < CHUNK / PER_WORD; part += 16) {
      v16u word[ROWS_AT_ONCE];
#pragma GCC unroll 3
      for (int i = 0; i < count; i++) word[i] = load_u((const uint32_t *)(x[i] + from) + part);
#pragma GCC unroll 8
      for (int k = 0; k < RANKS_AT_ONCE; k++) {
        __builtin_prefetch((const char *)(a + k * CHUNK) + PREFETCH_BYTES + part * 4);
        const v16u weight = load_u((const uint32_t *)(a + k * CHUNK) + part);
#pragma GCC unroll 3
        for (int i = 0; i < count; i++) sums[i][k] = dot_words(sums[i][k], weight, word[i]);
      }
    }
  if (whole < inner) {  // what stands behind a row is not of the row
    element cut[ROWS_AT_ONCE][CHUNK] = {0};
    for (int i = 0; i < count; i++) memcpy(cut[i], x[i] + whole, (size_t)(inner - whole) * sizeof(element));
    for (int part = 0; part < CHUNK / PER_WORD; part += 16)
      for (int k = 0; k < RANKS_AT_ONCE; k++) {
        const v16u weight = load_u((const uint32_t *)(a + k * CHUNK) + part);
        for (int i = 0; i < count; i++) {
          uint32_t words[16];
          memcpy(words, (const char *)cut[i] + part * 4, sizeof words);
          sums[i][k] = dot_words(sums[i][k], weight, load_u(words));
        }
      }
  }
  for (int i = 0; i < count; i++) {
    float wide[16] = {0};
    element narrowed[16];
    for (int k = 0; k < RANKS_AT_ONCE; k++) wide[k] = sum_lanes(sums[i][k]) * scales[k];
    narrow(narrowed, load_f(wide));
    memcpy(z[i], narrowed, RANKS_AT_ONCE * sizeof(element));
  }
}

#define SHRINK(count) \
  NOT_INLINE void NAME(shrink_##count)(const element *const *x, const element *a, int64_t inner, const float *scales, element *const *z) { \
    NAME(shrink_rows)(x, a, inner, scales, z, count); \
  }
SHRINK(1) SHRINK(2) SHRINK(3)
#undef SHRINK

// One group of 8 ranks for the rows of one run. `rows` [.., row_words]; `z` [.., z_words].
static void NAME(shrink_group)(const low_rank *l, int64_t group, const low_rank_run *run, const uint32_t *rows, int64_t row_words,
                               int64_t inner, uint32_t *z, int64_t z_words) {
  const int64_t chunks = (inner + CHUNK - 1) / CHUNK;
  const element *a = (const element *)l->a + group * chunks * RANKS_AT_ONCE * CHUNK;
  const float *scales = l->scales + group * RANKS_AT_ONCE;
  const element *x[ROWS_AT_ONCE];
  element *to[ROWS_AT_ONCE];
  for (int i = 0; i < run->count; i++) {
    x[i] = (const element *)(rows + run->rows[i] * row_words);
    to[i] = (element *)(z + run->rows[i] * z_words) + group * RANKS_AT_ONCE;
  }
  if (run->count == 1)
    NAME(shrink_1)(x, a, inner, scales, to);
  else if (run->count == 2)
    NAME(shrink_2)(x, a, inner, scales, to);
  else
    NAME(shrink_3)(x, a, inner, scales, to);
}

// 16 outputs of `count` rows of one adapter, added to what stands in `to`.
INLINE void NAME(expand_half)(const uint32_t *b, int64_t words, const uint32_t *const *z, float *const *to, const int count) {
  v16f sums[EXPAND_AT_ONCE];
#pragma GCC unroll 4
  for (int i = 0; i < count; i++) sums[i] = load_f(to[i]);
  for (int64_t k = 0; k < words; k++) {
    const v16u weight = load_u(b + k * 16);
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) sums[i] = dot(sums[i], weight, z[i][k]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < count; i++) store_f(to[i], sums[i]);
}

static void NAME(expand)(const low_rank *l, int64_t half, const uint32_t *const *z, float *const *to, int count) {
  int64_t index;
  const int64_t part = part_of_half(l, half, &index), words = l->part_ranks[part] / PER_WORD;
  if (!words) return;
  const uint32_t *b = l->b[part] + index * words * 16, *of_part[EXPAND_AT_ONCE];
  for (int i = 0; i < count; i++) of_part[i] = z[i] + l->first_rank[part] / PER_WORD;
  switch (count) {
    case 1: NAME(expand_half)(b, words, of_part, to, 1); break;
    case 2: NAME(expand_half)(b, words, of_part, to, 2); break;
    case 3: NAME(expand_half)(b, words, of_part, to, 3); break;
    default: NAME(expand_half)(b, words, of_part, to, 4);
  }
}

// Fetches B of a tile's rows before their sums are taken, so that B is near when the sums are done.
static void NAME(await_tile)(const gemm *g, int64_t row, int64_t panel, int64_t tile) {
  const low_rank *last = NULL;
  for (int64_t i = 0; i < tile; i++) {
    const low_rank *l = product_of_row(g->added, row + i);
    if (!l || l == last) continue;
    last = l;
    for (int64_t half = 2 * panel; half < 2 * panel + 2; half++) {
      int64_t index;
      const int64_t part = part_of_half(l, half, &index), words = l->part_ranks[part] / PER_WORD;
      const char *b = (const char *)(l->b[part] + index * words * 16);
      for (int64_t byte = 0; byte < words * 64; byte += 64) __builtin_prefetch(b + byte);
    }
  }
}

// Adds the products of adapters to the sums of a tile: `sums` [tile][width * 32].
static void NAME(expand_tile)(const gemm *g, int64_t row, int64_t panel, int64_t tile, int64_t width, float *sums) {
  const row_additions *added = g->added;
  const low_rank *of_row[MAX_TILE];
  for (int64_t i = 0; i < tile; i++) of_row[i] = product_of_row(added, row + i);
  for (int64_t i = 0; i < tile; i++) {
    const low_rank *l = of_row[i];
    if (!l) continue;
    const uint32_t *z[EXPAND_AT_ONCE];
    float *of_tile[EXPAND_AT_ONCE];
    int count = 0;
    for (int64_t j = i; j < tile && count < EXPAND_AT_ONCE; j++) {
      if (of_row[j] != l) continue;
      of_row[j] = NULL;
      z[count] = added->z + (row + j) * added->z_words;
      of_tile[count++] = sums + j * width * LANES;
    }
    for (int64_t half = 0; half < 2 * width; half++) {
      float *to[EXPAND_AT_ONCE];
      for (int j = 0; j < count; j++) to[j] = of_tile[j] + half * 16;
      NAME(expand)(l, 2 * panel + half, z, to, count);
    }
  }
}

// Adds the products of adapters to rows that are computed already: `out` [num_rows, out_stride] elements, or float.
static void NAME(add_halves)(const row_additions *added, const low_rank_run *runs, int64_t num_runs, int64_t from, int64_t to,
                             void *out, int64_t out_stride, int64_t num_outputs, int is_narrow) {
  for (int64_t number = 0; number < num_runs; number++) {
    const low_rank_run *run = runs + number;
    const low_rank *l = added->adapters[run->adapter] + added->product;
    if (!l->num_ranks) continue;
    for (int64_t half = from; half < to; half++) {
      const int64_t column = half * 16, columns = num_outputs - column < 16 ? num_outputs - column : 16;
      float sums[ROWS_AT_ONCE][16], *of_rows[EXPAND_AT_ONCE];
      const uint32_t *z[EXPAND_AT_ONCE];
      for (int i = 0; i < run->count; i++) {
        const int64_t place = run->rows[i] * out_stride + column;
        z[i] = added->z + run->rows[i] * added->z_words;
        of_rows[i] = sums[i];
        if (is_narrow) {
          element part[16] = {0};
          memcpy(part, (const element *)out + place, (size_t)columns * sizeof(element));
          store_f(sums[i], widen(part));
        } else {
          memset(sums[i], 0, sizeof sums[i]);
          memcpy(sums[i], (const float *)out + place, (size_t)columns * sizeof(float));
        }
      }
      NAME(expand)(l, half, z, of_rows, run->count);
      for (int i = 0; i < run->count; i++) {
        const int64_t place = run->rows[i] * out_stride + column;
        if (is_narrow) {
          element part[16];
          narrow(part, load_f(sums[i]));
          memcpy((element *)out + place, part, (size_t)columns * sizeof(element));
        } else {
          memcpy((float *)out + place, sums[i], (size_t)columns * sizeof(float));
        }
      }
    }
  }
}
