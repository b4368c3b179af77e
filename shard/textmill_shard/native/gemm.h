// Matrix product with packed weights; every sum runs over the inner axis in order, so a row's result does not
// depend on how many rows are computed with it.
// Packed layout: panels of 32 outputs, in a panel one after the other the words of the inner axis, 32 of each.

#define LANES 32
#define NOT_INLINE static __attribute__((noinline))
#if defined(__AVX512F__)
#define MAX_TILE 12  // rows by 32 outputs: 24 of 32 registers hold sums, and each load of 64 bytes serves 12 products
#else
#define MAX_TILE 3
#endif
// Rows whose inputs stay in the second-level cache while all panels pass by: 120 of a 576-wide model are 146 KB.
#define BLOCK_ROWS 120
#define BLOCK_BYTES (512 << 10)
#define MOST_BLOCK_ROWS (BLOCK_ROWS > 2 * MAX_TILE ? BLOCK_ROWS : 2 * MAX_TILE)
// How far ahead of the sums weights are fetched. With several rows a thread computes for longer than the processor looks ahead.
#define FETCH_BYTES (8 << 10)

// out = x; x, narrowed; out += x; silu(first 16) * last 16, narrowed
typedef enum { STORE, NARROW, ADD, GATE } gemm_end;

struct row_additions;

typedef struct {
  const uint32_t *rows;  // [num_rows, row_words] elements
  int64_t row_words;     // from row to row
  const uint32_t *panels;
  int64_t inner_words;
  int64_t num_rows;
  int64_t num_outputs;  // columns beyond are not written (STORE, NARROW); the last panel is filled with zeros
  const float *bias;    // NULL or one per output, padded to whole panels
  void *out;            // float [num_rows, out_stride]; NARROW, GATE: elements; GATE: 16 per panel
  int64_t out_stride;
  gemm_end end;
  const struct row_additions *added;  // products of adapters, see low_rank.h; NULL: none
} gemm;

// Rows are computed in blocks of about equal size.
INLINE int64_t num_row_blocks(const gemm *g) {
  int64_t most = BLOCK_BYTES / (g->row_words * 4) / MAX_TILE * MAX_TILE;
  if (most > BLOCK_ROWS) most = BLOCK_ROWS;
  if (most < 2 * MAX_TILE) most = 2 * MAX_TILE;
  return (g->num_rows + most - 1) / most;
}

// Few rows need several panels at a time, else the sums wait for each other.
INLINE int64_t panels_at_once(int64_t rows) {
#if MAX_TILE == 12
  return rows == 1 ? 3 : rows <= 6 ? 2 : 1;
#else
  return 1;
#endif
}

INLINE int64_t num_panels(const gemm *g) { return (g->num_outputs + LANES - 1) / LANES; }

// Where the 32 sums of a row and a panel begin in what `sum_panels` wrote.
INLINE int64_t sum_place(int64_t tile, int64_t panels, int64_t row, int64_t panel) {
  const int64_t at_once = panels_at_once(tile), width = panel < panels / at_once * at_once ? at_once : 1;
  return (panel / width * width * tile + row * width + panel % width) * LANES;
}
