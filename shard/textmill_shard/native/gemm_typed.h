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

// The sums of `tile` rows by `width` panels, [tile][width * 32], added to what stands there if `is_more`. Tile and width are
// constants where this is inlined. Every instance below is a function
// of its own that does nothing else, since compilers that see more around it put some of the sums into memory.
INLINE void NAME(tile_sums)(const gemm *g, int64_t row, int64_t panel, int is_more, const expansion *added, float *to, const int tile,
                            const int width) {
  v16f sums[MAX_TILE][8];
  const int64_t words = g->inner_words, stride = g->row_words;
  const uint32_t *w = g->panels + panel * words * LANES, *end = w + words * LANES;
  const uint32_t *x[(MAX_TILE + 2) / 3];  // of every third row: fewer addresses than rows
#pragma GCC unroll 4
  for (int i = 0; i < tile; i += 3) x[i / 3] = g->rows + (row + i) * stride;
#pragma GCC unroll 12
  for (int i = 0; i < tile; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * width; j++) sums[i][j] = is_more ? load_f(to + (i * 2 * width + j) * 16) : splat(0.0f);
  for (; w < end; w += LANES) {
    v16u lanes[8];
#pragma GCC unroll 4
    for (int j = 0; j < width; j++) {
      if (tile > 1) {  // what a row alone waits for, the processor fetches by itself
        __builtin_prefetch(w + j * words * LANES + FETCH_BYTES / 4 / width);
        __builtin_prefetch(w + j * words * LANES + FETCH_BYTES / 4 / width + 16);
      }
      lanes[2 * j] = load_u(w + j * words * LANES);
      lanes[2 * j + 1] = load_u(w + j * words * LANES + 16);
    }
#pragma GCC unroll 12
    for (int i = 0; i < tile; i++)
#pragma GCC unroll 8
      for (int j = 0; j < 2 * width; j++) sums[i][j] = dot(sums[i][j], lanes[j], x[i / 3][i % 3 * stride]);
#pragma GCC unroll 4
    for (int i = 0; i < tile; i += 3) x[i / 3]++;
  }
#pragma GCC unroll 3
  for (int p = 0; added && p < width; p++, added++) {
    const int64_t apart = added->z_at[1] - added->z_at[0], z_stride = added->z_words;
    const uint32_t *first = added->b[0], *second = added->b[1], *last = first + added->words[0] * 16;
#pragma GCC unroll 4
    for (int i = 0; i < tile; i += 3) x[i / 3] = added->z + added->z_at[0] + i * z_stride;
    for (; first < last; first += 16, second += 16) {
      const v16u lanes = load_u(first), more = load_u(second);
#pragma GCC unroll 12
      for (int i = 0; i < tile; i++) {
        sums[i][2 * p] = dot(sums[i][2 * p], lanes, x[i / 3][i % 3 * z_stride]);
        sums[i][2 * p + 1] = dot(sums[i][2 * p + 1], more, x[i / 3][i % 3 * z_stride + apart]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < tile; i += 3) x[i / 3]++;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < tile; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 2 * width; j++) store_f(to + (i * 2 * width + j) * 16, sums[i][j]);
}

#define TILE(tile, width) \
  NOT_INLINE void NAME(sums_##tile##x##width)(const gemm *g, int64_t row, int64_t panel, int is_more, const expansion *added, float *to) { \
    NAME(tile_sums)(g, row, panel, is_more, added, to, tile, width); \
  }
TILE(1, 1) TILE(2, 1) TILE(3, 1)
#if MAX_TILE == 12
TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1)
TILE(1, 3) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
#endif
#undef TILE

static void NAME(sum_tile)(const gemm *g, int64_t row, int64_t panel, int64_t tile, int64_t width, int is_more, const expansion *added, float *to) {
  switch (tile * 4 + width) {
#define CASE(tile, width) \
  case tile * 4 + width: \
    NAME(sums_##tile##x##width)(g, row, panel, is_more, added, to); \
    break;
    CASE(1, 1) CASE(2, 1) CASE(3, 1)
#if MAX_TILE == 12
    CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1) CASE(8, 1) CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1)
    CASE(1, 3) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2)
#endif
#undef CASE
  }
}

// `marks`: of the tile's rows, see low_rank.h; not read without additions.
static void NAME(run_tile)(const gemm *g, int64_t row, int64_t panel, int64_t tile, int64_t width, const row_mark *marks) {
  _Alignas(64) float sums[MAX_TILE * LANES];
  expansion whole[3];
  const expansion *added = NULL;
  if (g->added) {
    NAME(await_tile)(g, row, panel, tile, width, marks);
    if (marks->is_whole) added = NAME(expand_whole)(g, row, panel, width, whole);
  }
  NAME(sum_tile)(g, row, panel, tile, width, 0, added, sums);
  if (g->added && !added) NAME(expand_tile)(g, row, panel, tile, width, marks, sums);
  for (int64_t i = 0; i < tile; i++)
    for (int64_t j = 0; j < width; j++) {
      const float *sum = sums + (i * width + j) * LANES;
      NAME(end_row)(g, row + i, panel + j, load_f(sum), load_f(sum + 16));
    }
}

// Sums alone, of `tile` rows by `panels` panels: where a sum then stands in `to` says `sum_place`.
static void NAME(sum_panels)(const gemm *g, int64_t row, int64_t tile, int64_t panels, int is_more, float *to) {
  const int64_t at_once = panels_at_once(tile);
  for (int64_t panel = 0, width; panel < panels; panel += width) {
    width = panel + at_once <= panels ? at_once : 1;
    NAME(sum_tile)(g, row, panel, tile, width, is_more, NULL, to + panel * tile * LANES);
  }
}

// Panels `from` .. `to` of the rows of a block.
static void NAME(run_block)(const gemm *g, int64_t block, int64_t num_blocks, int64_t from, int64_t to) {
  const int64_t first = share(g->num_rows, block, num_blocks), rows = share(g->num_rows, block + 1, num_blocks) - first;
  const int64_t num_tiles = (rows + MAX_TILE - 1) / MAX_TILE, at_once = panels_at_once(rows);
  row_mark marks[MOST_BLOCK_ROWS];
  for (int64_t tile = 0; tile < (g->added ? num_tiles : 0); tile++)
    mark_rows(g->added, first, share(rows, tile, num_tiles), share(rows, tile + 1, num_tiles), marks);
  for (int64_t panel = from, width; panel < to; panel += width) {
    width = panel + at_once <= to ? at_once : 1;
    for (int64_t tile = 0; tile < num_tiles; tile++) {
      const int64_t start = share(rows, tile, num_tiles), stop = share(rows, tile + 1, num_tiles);
      NAME(run_tile)(g, first + start, panel, stop - start, width, marks + start);
    }
  }
}

// Panels `from` .. `to` of all rows.
static void NAME(run_gemm)(const gemm *g, int64_t from, int64_t to) {
  const int64_t num_blocks = num_row_blocks(g);
  for (int64_t block = 0; block < num_blocks; block++) NAME(run_block)(g, block, num_blocks, from, to);
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
