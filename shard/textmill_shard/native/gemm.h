// Matrix product with packed weights; every sum runs over the inner axis in order, so a row's result does not
// depend on how many rows are computed with it.
// Packed layout: panels of 32 outputs, in a panel one after the other the words of the inner axis, 32 of each.

#define LANES 32
#if defined(__AVX512F__)
#define MAX_TILE 12  // rows by 32 outputs in 24 of 32 registers
#else
#define MAX_TILE 3
#endif
#define BLOCK_ROWS 120  // rows that stay in the second-level cache while the panels pass by

// out = x; x, narrowed; out += x; silu(first 16) * last 16, narrowed
typedef enum { STORE, NARROW, ADD, GATE } gemm_end;

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
} gemm;
