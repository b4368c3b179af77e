// Products of LoRA adapters: z = scale * (x A^T) per row (shrink), then out += z B^T behind a product's sums (expand).
// A product can have parts, for example query, key and value, each with matrices of its own. A row's result depends on no
// other row: its sums run over the inner axis in one order, whatever rows stand beside it.

#define RANKS_AT_ONCE 8
#define ROWS_AT_ONCE 3    // of one adapter in shrink
#define EXPAND_AT_ONCE 4  // of one adapter in expand
#define CHUNK 32          // inner elements that stand side by side in A
#define MAX_PARTS 3
#define PREFETCH_BYTES 4096

typedef struct {
  int64_t num_ranks;    // of all parts; each part has a multiple of 8. 0: the adapter leaves this product alone
  const void *a;        // elements [num_ranks / 8][inner / 32, rounded up][8][32]
  const float *scales;  // [num_ranks]
  int64_t num_parts, is_gate;  // is_gate: the first 16 outputs of a panel are of part 0, the others of part 1
  int64_t first_half[MAX_PARTS];  // half panels of 16 outputs where a part begins, rising
  int64_t first_rank[MAX_PARTS], part_ranks[MAX_PARTS];
  const uint32_t *b[MAX_PARTS];   // [half panels of the part][ranks of the part as words][16]
} low_rank;

typedef struct row_additions {
  const low_rank *const *adapters;  // for each adapter of the step its products
  int64_t product;                  // index of the product among these
  const int32_t *adapter_of_row;    // -1: none
  const uint32_t *z;                // elements [rows, z_words]
  int64_t z_words;
} row_additions;

// Rows of one adapter that are shrunk together.
typedef struct {
  int32_t adapter, count;
  int32_t rows[ROWS_AT_ONCE];
} low_rank_run;

INLINE const low_rank *product_of_row(const row_additions *a, int64_t row) {
  const int32_t adapter = a->adapter_of_row[row];
  if (adapter < 0) return NULL;
  const low_rank *l = a->adapters[adapter] + a->product;
  return l->num_ranks ? l : NULL;
}

// Writes at most `num_rows` runs. `open` has room for one index per adapter.
static int64_t list_low_rank_runs(const int32_t *adapter_of_row, int64_t num_rows, int64_t num_adapters, int64_t *open, low_rank_run *runs) {
  int64_t num_runs = 0;
  for (int64_t i = 0; i < num_adapters; i++) open[i] = -1;
  for (int64_t row = 0; row < num_rows; row++) {
    const int32_t adapter = adapter_of_row[row];
    if (adapter < 0) continue;
    if (open[adapter] < 0 || runs[open[adapter]].count == ROWS_AT_ONCE) {
      open[adapter] = num_runs;
      runs[num_runs++] = (low_rank_run){.adapter = adapter, .count = 0};
    }
    low_rank_run *run = runs + open[adapter];
    run->rows[run->count++] = (int32_t)row;
  }
  return num_runs;
}

// The most groups of 8 ranks that an adapter of the step has for a product.
static int64_t most_rank_groups(const low_rank *const *adapters, int64_t num_adapters, int64_t product) {
  int64_t most = 0;
  for (int64_t i = 0; i < num_adapters; i++)
    if (adapters[i][product].num_ranks > most) most = adapters[i][product].num_ranks;
  return most / RANKS_AT_ONCE;
}

// Where the outputs of a half panel stand in B: gives the part, and the index of the half panel in the part.
INLINE int64_t part_of_half(const low_rank *l, int64_t half, int64_t *index) {
  if (l->is_gate) {
    *index = half / 2;
    return half % 2;
  }
  int64_t part = l->num_parts - 1;
  while (part && half < l->first_half[part]) part--;
  *index = half - l->first_half[part];
  return part;
}
