// Included once per element type, after element.h and before gemm_typed.h.

// z of `count` rows and 8 ranks: lanes run over the inner axis and are added up at the end. `next` is what is
// read afterwards.
INLINE void NAME(shrink_rows)(const element *const *x, const element *a, const element *next, int64_t inner, const float *scales,
                              element *const *z, const int count) {
  v16f sums[ROWS_AT_ONCE][RANKS_AT_ONCE];
#pragma GCC unroll 3
  for (int i = 0; i < count; i++)
#pragma GCC unroll 8
    for (int k = 0; k < RANKS_AT_ONCE; k++) sums[i][k] = splat(0.0f);
  const int64_t whole = inner / CHUNK * CHUNK;
  const char *end = (const char *)(a + (inner + CHUNK - 1) / CHUNK * RANKS_AT_ONCE * CHUNK), *ahead = (const char *)a + AHEAD_BYTES;
  if (ahead >= end) ahead = (const char *)next;
  for (int64_t from = 0; from < whole; from += CHUNK, a += RANKS_AT_ONCE * CHUNK) {
#pragma GCC unroll 2
    for (int part = 0; part < CHUNK / PER_WORD; part += 16) {
      v16u word[ROWS_AT_ONCE];
#pragma GCC unroll 3
      for (int i = 0; i < count; i++) word[i] = load_u((const uint32_t *)(x[i] + from) + part);
#pragma GCC unroll 8
      for (int k = 0; k < RANKS_AT_ONCE; k++) {
        __builtin_prefetch(ahead + k * CHUNK * sizeof(element) + part * 4);
        const v16u weight = load_u((const uint32_t *)(a + k * CHUNK) + part);
#pragma GCC unroll 3
        for (int i = 0; i < count; i++) sums[i][k] = dot_words(sums[i][k], weight, word[i]);
      }
    }
    ahead += RANKS_AT_ONCE * CHUNK * sizeof(element);
    if (ahead == end) ahead = (const char *)next;
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
#pragma GCC unroll 3
  for (int i = 0; i < count; i++) {
    float wide[16] = {0};
    element narrowed[16];
    sum_lanes_of_8(sums[i], wide);
    for (int k = 0; k < RANKS_AT_ONCE; k++) wide[k] *= scales[k];
    narrow(narrowed, load_f(wide));
    memcpy(z[i], narrowed, RANKS_AT_ONCE * sizeof(element));
  }
}

#define SHRINK(count) \
  NOT_INLINE void NAME(shrink_##count)(const element *const *x, const element *a, const element *next, int64_t inner, \
                                       const float *scales, element *const *z) { \
    NAME(shrink_rows)(x, a, next, inner, scales, z, count); \
  }
SHRINK(1) SHRINK(2) SHRINK(3)
#undef SHRINK

INLINE const element *NAME(ranks_of_piece)(const low_rank *l, int64_t group, int64_t inner) {
  return (const element *)l->a + group * ((inner + CHUNK - 1) / CHUNK) * RANKS_AT_ONCE * CHUNK;
}

// What one of `size` threads computes of z. `rows` [.., row_words]; `z` [.., z_words]. Every thread gets pieces that follow
// each other, so that each can fetch ahead.
static void NAME(shrink_share)(const low_rank *const *adapters, int64_t product, const low_rank_run *runs, int64_t num_runs,
                               int64_t groups, int64_t member, int64_t size, const uint32_t *rows, int64_t row_words,
                               int64_t inner, uint32_t *z, int64_t z_words) {
  const int64_t pieces = num_runs * groups, until = share(pieces, member + 1, size);
  for (int64_t number = share(pieces, member, size); number < until; number++) {
    const shrink_piece piece = piece_of_shrink(runs, groups, number);
    const low_rank_run *run = piece.run;
    const low_rank *l = adapters[run->adapter] + product;
    if (piece.group >= l->num_ranks / RANKS_AT_ONCE) continue;
    const element *a = NAME(ranks_of_piece)(l, piece.group, inner), *next = a;
    if (number + 1 < until) {
      const shrink_piece after = piece_of_shrink(runs, groups, number + 1);
      const low_rank *of_next = adapters[after.run->adapter] + product;
      if (after.group < of_next->num_ranks / RANKS_AT_ONCE) next = NAME(ranks_of_piece)(of_next, after.group, inner);
    }
    const float *scales = l->scales + piece.group * RANKS_AT_ONCE;
    __builtin_prefetch(scales);
    const element *x[ROWS_AT_ONCE];
    element *to[ROWS_AT_ONCE];
    for (int i = 0; i < run->count; i++) {
      x[i] = (const element *)(rows + run->rows[i] * row_words);
      to[i] = (element *)(z + run->rows[i] * z_words) + piece.group * RANKS_AT_ONCE;
    }
    if (run->count == 1)
      NAME(shrink_1)(x, a, next, inner, scales, to);
    else if (run->count == 2)
      NAME(shrink_2)(x, a, next, inner, scales, to);
    else
      NAME(shrink_3)(x, a, next, inner, scales, to);
  }
}

INLINE expansion NAME(expansion_of)(const row_additions *a, int64_t row, int64_t panel) {
  const low_rank *l = product_of_row(a, row);
  expansion e = {.z = a->z + row * a->z_words, .z_words = a->z_words};
  for (int64_t half = 0; half < 2; half++) {
    int64_t index;
    const int64_t part = part_of_half(l, 2 * panel + half, &index);
    e.words[half] = l->part_ranks[part] / PER_WORD;
    e.z_at[half] = l->first_rank[part] / PER_WORD;
    e.b[half] = l->b[part] + index * l->half_words[part];
  }
  return e;
}

// The 32 outputs of one row, added to what stands in `to`.
static void NAME(expand_row)(const row_additions *a, int64_t row, int64_t panel, float *to) {
  const expansion e = NAME(expansion_of)(a, row, panel);
  const uint32_t *z[2] = {e.z + e.z_at[0], e.z + e.z_at[1]};
  v16f sums[2] = {load_f(to), load_f(to + 16)};
  const int64_t both = e.words[0] < e.words[1] ? e.words[0] : e.words[1];
  for (int64_t k = 0; k < both; k += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++)
        sums[half] = dot(sums[half], load_u(e.b[half] + (k + i) * 16), z[half][k + i]);
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    for (int64_t k = both; k < e.words[half]; k++) sums[half] = dot(sums[half], load_u(e.b[half] + k * 16), z[half][k]);
    store_f(to + half * 16, sums[half]);
  }
}

// What the rows of a tile that have one adapter add to `width` panels; NULL if the halves of a panel differ in width.
static const expansion *NAME(expand_whole)(const gemm *g, int64_t row, int64_t panel, int64_t width, expansion *to) {
  for (int64_t j = 0; j < width; j++) {
    to[j] = NAME(expansion_of)(g->added, row, panel + j);
    if (to[j].words[0] != to[j].words[1]) return NULL;
  }
  return to;
}

// Adds the products of adapters to the sums of a tile row by row: `sums` [tile][width * 32].
static void NAME(expand_tile)(const gemm *g, int64_t row, int64_t panel, int64_t tile, int64_t width, const row_mark *marks, float *sums) {
  for (int64_t i = 0; i < tile; i++)
    for (int64_t j = 0; j < (marks[i].is_added ? width : 0); j++)
      NAME(expand_row)(g->added, row + i, panel + j, sums + (i * width + j) * LANES);
}

// Fetches B of a tile's rows before their sums are taken, so that B is near when the sums are done. Inlined, because compilers
// leave out calls of functions that only fetch.
INLINE void NAME(await_tile)(const gemm *g, int64_t row, int64_t panel, int64_t tile, int64_t width, const row_mark *marks) {
  for (int64_t i = 0; i < tile; i++)
    for (int64_t j = 0; j < (marks[i].is_first ? width : 0); j++) {
      const expansion e = NAME(expansion_of)(g->added, row + i, panel + j);
      for (int half = 0; half < 2; half++)
        for (int64_t k = 0; k < e.words[half]; k++) __builtin_prefetch(e.b[half] + k * 16);
    }
}

// 32 outputs of a row that is computed already, as floats, and back; beyond `columns` nothing is read or written.
INLINE void NAME(read_panel)(const void *row, int64_t columns, int is_narrow, float *to) {
  element part[LANES] = {0};
  const element *from = row;
  if (columns < LANES) {
    memset(to, 0, LANES * sizeof(float));
    memcpy(is_narrow ? (void *)part : to, row, (size_t)columns * (is_narrow ? sizeof(element) : sizeof(float)));
    from = part;
  } else if (!is_narrow) {
    memcpy(to, row, LANES * sizeof(float));
  }
  if (!is_narrow) return;
  store_f(to, widen(from));
  store_f(to + 16, widen(from + 16));
}
INLINE void NAME(write_panel)(void *row, int64_t columns, int is_narrow, const float *from) {
  element part[LANES];
  if (is_narrow) {
    narrow(part, load_f(from));
    narrow(part + 16, load_f(from + 16));
  }
  const size_t width = is_narrow ? sizeof(element) : sizeof(float);
  const void *all = is_narrow ? (const void *)part : from;
  if (columns < LANES)
    memcpy(row, all, (size_t)columns * width);
  else
    memcpy(row, all, LANES * width);
}

// Adds the products of adapters to rows that are computed already: `out` [num_rows, out_stride] elements, or float. The rows
// of an adapter take a panel one after the other, because its B stays near meanwhile.
static void NAME(add_panels)(const row_additions *added, const low_rank_run *runs, int64_t num_runs, int64_t from, int64_t until,
                             void *out, int64_t out_stride, int64_t num_outputs, int is_narrow) {
  const int64_t width = is_narrow ? sizeof(element) : sizeof(float);
  for (const low_rank_run *first = runs; first < runs + num_runs; first += first->num_runs) {
    if (!added->adapters[first->adapter][added->product].num_ranks) continue;
    for (int64_t panel = from; panel < until; panel++) {
      const int64_t left = num_outputs - panel * LANES, columns = left < LANES ? left : LANES;
      for (const low_rank_run *run = first; run < first + first->num_runs; run++)
        for (int i = 0; i < run->count; i++) {
          float sums[LANES];
          void *row = (char *)out + (run->rows[i] * out_stride + panel * LANES) * width;
          NAME(read_panel)(row, columns, is_narrow, sums);
          NAME(expand_row)(added, run->rows[i], panel, sums);
          NAME(write_panel)(row, columns, is_narrow, sums);
        }
    }
  }
}
