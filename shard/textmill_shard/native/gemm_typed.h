// Included once per element type, after element.h.

INLINE void NAME(end_row)(const gemm *g, int64_t row, int64_t panel, v16f first, v16f second) {
  const int64_t column = panel * LANES;
  if (g->bias) {
    first += load_f(g->bias + column);
    second += load_f(g->bias + column + 16);
  }
  if (g->end == GATE) {
    const v16f gate = first / (splat(1.0f) + exp_v(-first));
    narrow((element *)g->out + row * g->out_stride + panel * 16, gate * second);
    return;
  }
  if (g->end == NARROW) {
    element both[LANES];
    const int64_t columns = g->num_outputs - column < LANES ? g->num_outputs - column : LANES;
    narrow(both, first);
    narrow(both + 16, second);
    memcpy((element *)g->out + row * g->out_stride + column, both, (size_t)columns * sizeof(element));
    return;
  }
  float *to = (float *)g->out + row * g->out_stride + column;
  if (g->end == ADD) {
    first += load_f(to);
    second += load_f(to + 16);
  }
  if (column + LANES <= g->num_outputs || g->end == ADD) {
    store_f(to, first);
    store_f(to + 16, second);
  } else {
    float both[LANES];
    store_f(both, first);
    store_f(both + 16, second);
    memcpy(to, both, (size_t)(g->num_outputs - column) * sizeof(float));
  }
}

// `tile` rows by `width` panels; both are constants where this is inlined.
INLINE void NAME(tile)(const gemm *g, int64_t row, int64_t panel, const int tile, const int width) {
  v16f sums[12][8];
  const int64_t words = g->inner_words, stride = g->row_words;
  const uint32_t *x = g->rows + row * stride;
  const uint32_t *w = g->panels + panel * words * LANES;
#pragma GCC unroll 12
  for (int i = 0; i < tile; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * width; j++) sums[i][j] = splat(0.0f);
  for (int64_t k = 0; k < words; k++) {
    v16u lanes[8];
#pragma GCC unroll 4
    for (int j = 0; j < width; j++) {
      const uint32_t *at = w + (j * words + k) * LANES;
      lanes[2 * j] = load_u(at);
      lanes[2 * j + 1] = load_u(at + 16);
    }
#pragma GCC unroll 12
    for (int i = 0; i < tile; i++)
#pragma GCC unroll 8
      for (int j = 0; j < 2 * width; j++) sums[i][j] = dot(sums[i][j], lanes[j], x[i * stride + k]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < tile; i++)
#pragma GCC unroll 4
    for (int j = 0; j < width; j++) NAME(end_row)(g, row + i, panel + j, sums[i][2 * j], sums[i][2 * j + 1]);
}

// One row needs several panels at a time, else the sums wait for each other.
INLINE void NAME(few_rows)(const gemm *g, int64_t row, int64_t from, int64_t to, const int tile, const int width) {
  int64_t panel = from;
  for (; panel + width <= to; panel += width) NAME(tile)(g, row, panel, tile, width);
  for (; panel < to; panel++) NAME(tile)(g, row, panel, tile, 1);
}

static void NAME(row_tile)(const gemm *g, int64_t row, int64_t panel, int tile) {
  switch (tile) {
#define CASE(n) \
  case n: \
    NAME(tile)(g, row, panel, n, 1); \
    break;
    CASE(1) CASE(2) CASE(3)
#if MAX_TILE == 12
    CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
  }
}

// Panels `from` .. `to` of all rows.
static void NAME(run_gemm)(const gemm *g, int64_t from, int64_t to) {
  for (int64_t first = 0; first < g->num_rows; first += BLOCK_ROWS) {
    const int64_t rows = g->num_rows - first < BLOCK_ROWS ? g->num_rows - first : BLOCK_ROWS;
#if MAX_TILE == 12
    if (rows == 1) {
      NAME(few_rows)(g, first, from, to, 1, 3);
      continue;
    }
    if (rows <= 3) {
      if (rows == 2)
        NAME(few_rows)(g, first, from, to, 2, 2);
      else
        NAME(few_rows)(g, first, from, to, 3, 2);
      continue;
    }
#endif
    const int64_t num_tiles = (rows + MAX_TILE - 1) / MAX_TILE;
    for (int64_t panel = from; panel < to; panel++)
      for (int64_t tile = 0; tile < num_tiles; tile++) {
        const int64_t start = share(rows, tile, num_tiles), stop = share(rows, tile + 1, num_tiles);
        NAME(row_tile)(g, first + start, panel, (int)(stop - start));
      }
  }
}

// Packs rows `weights[output_of_lane]` of `[outputs, inner]`; the caller says which output stands in which lane.
// `first` .. `last` panels; lane l of panel p takes row_of(p, l), missing rows are zero.
static void NAME(pack_panel)(const element *weights, int64_t inner, const int64_t row_of_lane[LANES], uint32_t *panel) {
  const int64_t words = inner / PER_WORD;
  for (int lane = 0; lane < LANES; lane++) {
    const uint32_t *row = row_of_lane[lane] < 0 ? NULL : (const uint32_t *)(weights + row_of_lane[lane] * inner);
    for (int64_t k = 0; k < words; k++) panel[k * LANES + lane] = row ? row[k] : 0;
  }
}
